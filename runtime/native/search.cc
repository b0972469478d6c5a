// Which symbols an encoder writes: the ones of least squared error and bits together, along a trellis of eight states or
// one by one. linnet.h says what a decoder makes of them; how they are chosen is the encoder's own business.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "tables.h"

namespace {

constexpr uint32_t kStates = 8, kLanes = 4;
constexpr float kMaxMagnitude = LINNET_MAX_SYMBOL;
constexpr size_t kBytesPerSymbol = 13;

// The two ways into each state: from which, by a symbol of which parity. kNextState backwards.
struct Way {
    uint8_t from, parity;
};

struct Ways {
    Way into[kStates][2] = {};

    constexpr Ways()
    {
        uint8_t found[kStates] = {};
        for (uint8_t from = 0; from < kStates; from++)
            for (uint8_t parity = 0; parity < 2; parity++) {
                const uint8_t to = linnet::kNextState[from][parity];
                into[to][found[to]++] = {from, parity};
            }
    }
};
constexpr Ways kWays;

// A number for each lane. GCC and Clang turn these into the vectors of whatever processor it is.
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// The best symbol of each quantiser and parity (index 2 * quantiser + parity) for each lane, and what it costs.
struct Choices {
    Floats cost[4];
    Integers symbol[4];
};

// Both parities of one quantiser: the levels on both sides of the residual, and zero instead of the even one.
LINNET_INLINE void choose(const linnet::Table *const *tables, uint32_t base, int32_t quantiser, Floats residual,
                          float bit_worth, Choices &choices)
{
    const float half = quantiser ? 0.5f : 0;
    const Floats wanted = residual < 0 ? -residual : residual;
    const Floats magnitude = wanted < kMaxMagnitude ? wanted : Floats{} + kMaxMagnitude;
    const Integers whole = __builtin_convertvector(magnitude + half, Integers);
    const Integers below = whole < LINNET_MAX_SYMBOL - 1 ? whole : Integers{} + (LINNET_MAX_SYMBOL - 1);
    Floats bits_below, bits_above, bits_zero;
    for (uint32_t lane = 0; lane < kLanes; lane++) {
        const linnet::Table &table = tables[lane][base];
        const float *const bits = table.bits + std::min(below[lane], table.radius + 1);
        bits_below[lane] = bits[0];
        bits_above[lane] = bits[1];
        bits_zero[lane] = table.bits[0];
    }
    const Floats error = magnitude - (__builtin_convertvector(below, Floats) - half), error_above = error - 1;
    const Floats cost = error * error + bit_worth * bits_below;
    const Floats cost_above = error_above * error_above + bit_worth * bits_above;
    const Floats nothing = magnitude * magnitude + bit_worth * bits_zero;
    const Integers is_odd = -(below & 1), even = below + (below & 1), odd = below | 1;
    const Floats even_cost = is_odd ? cost_above : cost, odd_cost = is_odd ? cost : cost_above;
    const Integers sign = residual < 0, is_nothing = (nothing < even_cost) | (even == 0);
    choices.cost[2 * quantiser] = is_nothing ? nothing : even_cost;
    choices.symbol[2 * quantiser] = ~is_nothing & ((even ^ sign) - sign);
    choices.cost[2 * quantiser + 1] = odd_cost;
    choices.symbol[2 * quantiser + 1] = (odd ^ sign) - sign;
}

// Viterbi's algorithm over four trellises side by side. The path to each state ends in one of two ways, a bit of `way`.
struct Trellises {
    Floats cost[kStates];

    Trellises()
    {
        for (uint32_t state = 0; state < kStates; state++)
            cost[state] = Floats{} + (state ? std::numeric_limits<float>::infinity() : 0);
    }

    // Moves all lanes on; `ways` (kLanes) receives a bit for each state.
    LINNET_INLINE void step(const Choices &choices, uint8_t *ways)
    {
        Floats next[kStates], least = Floats{} + std::numeric_limits<float>::infinity();
        Integers way = {};
        for (uint32_t state = 0; state < kStates; state++) {
            const Way one = kWays.into[state][0], other = kWays.into[state][1];
            const Floats a = cost[one.from] + choices.cost[2 * (one.from & 1) + one.parity];
            const Floats b = cost[other.from] + choices.cost[2 * (other.from & 1) + other.parity];
            const Integers better = b < a;
            next[state] = better ? b : a;
            way |= better & int32_t(1u << state);
            least = next[state] < least ? next[state] : least;
        }
        for (uint32_t state = 0; state < kStates; state++)
            cost[state] = next[state] - least;
        const Bytes bits = __builtin_convertvector(way, Bytes);
        std::memcpy(ways, &bits, sizeof bits);
    }

    uint32_t best(uint32_t lane) const
    {
        uint32_t found = 0;
        for (uint32_t state = 1; state < kStates; state++)
            found = cost[state][lane] < cost[found][lane] ? state : found;
        return found;
    }
};

LINNET_INLINE float number(float residual)
{
    return residual == residual ? residual : 0;  // NaN
}

// The symbols of one call that are coded, kLanes side by side, and what their paths are made of. Passed by value: for all
// that a compiler knows the bytes written on the way could be any of it.
struct Search {
    const linnet_tables &tables;
    uint32_t base;  // the second quantiser's tables begin here
    float bit_worth;
    const float *residual;
    uint8_t *table_index;
    size_t coded;
    uint32_t *position;  // of each coded symbol in the call's arrays
    int16_t *candidate;  // for each kLanes symbols Choices' four, lane by lane
    uint8_t *ways;

    // How many lanes are in use from the symbol `first` on.
    uint32_t lanes(size_t first) const
    {
        return uint32_t(std::min<size_t>(kLanes, coded - first));
    }

    // What the first `quantisers` would make of the symbols from `first` on.
    LINNET_INLINE void choose_at(size_t first, int32_t quantisers, Choices &choices) const
    {
        const linnet::Table *own[kLanes];
        Floats residuals;
        for (uint32_t lane = 0; lane < kLanes; lane++) {
            const size_t i = position[first + std::min(lane, lanes(first) - 1)];
            own[lane] = tables.table + table_index[i];
            residuals[lane] = number(residual[i]);
        }
        choose(own, 0, 0, residuals, bit_worth, choices);
        if (quantisers == 2)
            choose(own, base, 1, residuals, bit_worth, choices);
    }
};

// Fills `candidate` and `ways`; the state in which each lane's best path ends goes to `end`.
LINNET_INLINE void follow(Search search, uint32_t *end)
{
    Trellises trellises;
    Choices choices = {};
    for (size_t first = 0; first < search.coded; first += kLanes) {
        search.choose_at(first, 2, choices);
        for (uint32_t c = 0; c < 4; c++) {
            const Shorts symbols = __builtin_convertvector(choices.symbol[c], Shorts);
            std::memcpy(search.candidate + 4 * first + kLanes * c, &symbols, sizeof symbols);
        }
        for (uint32_t lane = search.lanes(first); lane < kLanes; lane++)
            end[lane] = trellises.best(lane);  // of a trellis that ended one symbol before the others
        trellises.step(choices, search.ways + first);
    }
    const uint32_t ended = search.coded % kLanes ? uint32_t(search.coded % kLanes) : kLanes;
    for (uint32_t lane = 0; lane < ended; lane++)
        end[lane] = trellises.best(lane);
}

#if defined(__x86_64__)
// The same with instructions for selecting numbers, which SSE2 lacks.
__attribute__((target("avx2"))) void follow_avx2(Search search, uint32_t *end)
{
    follow(search, end);
}
#endif

// The best paths, from the states in which they end to their beginnings.
void trace_back(Search search, const uint32_t *end, int16_t *symbols, int16_t *levels)
{
    uint32_t state[kLanes];
    std::copy(end, end + kLanes, state);
    for (size_t group = (search.coded + kLanes - 1) / kLanes; group--;) {
        const size_t first = kLanes * group;
        const uint32_t lanes = search.lanes(first);
        const int16_t *const candidate = search.candidate + 4 * first;
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const Way way = kWays.into[state[lane]][search.ways[first + lane] >> state[lane] & 1];
            const uint32_t quantiser = way.from & 1;
            const size_t i = search.position[first + lane];
            const int16_t symbol = candidate[kLanes * (2 * quantiser + way.parity) + lane];
            symbols[i] = symbol;
            levels[i] = int16_t(linnet::level_of(symbol, way.from));
            search.table_index[i] = uint8_t(search.table_index[i] + search.base * quantiser);
            state[lane] = way.from;
        }
    }
}

void choose_each_alone(Search search, int16_t *symbols, int16_t *levels)
{
    Choices choices = {};
    for (size_t first = 0; first < search.coded; first += kLanes) {
        search.choose_at(first, 1, choices);
        const Integers symbol = choices.cost[1] < choices.cost[0] ? choices.symbol[1] : choices.symbol[0];
        for (uint32_t lane = 0; lane < search.lanes(first); lane++) {
            symbols[search.position[first + lane]] = int16_t(symbol[lane]);
            levels[search.position[first + lane]] = int16_t(2 * symbol[lane]);
        }
    }
}

// `count` in whole groups of lanes, or SIZE_MAX.
size_t padded(size_t count)
{
    return count > SIZE_MAX - kLanes ? SIZE_MAX : (count + kLanes - 1) / kLanes * kLanes;
}

}  // namespace

size_t linnet_search_size(size_t count)
{
    return padded(count) > SIZE_MAX / kBytesPerSymbol ? SIZE_MAX : kBytesPerSymbol * padded(count);
}

int linnet_search(const linnet_tables *tables, int trellis, float bit_worth, const float *residual,
                  uint8_t *table_index, size_t count, void *workspace, int16_t *symbols, int16_t *levels)
{
    if (!tables || (count && (!residual || !table_index || !symbols || !levels || !workspace)))
        return LINNET_ERROR_ARGUMENT;
    if ((trellis && !tables->paired) || !(bit_worth >= 0 && bit_worth <= LINNET_MAX_BIT_WORTH) || count > UINT32_MAX)
        return LINNET_ERROR_ARGUMENT;
    const uint32_t base = trellis ? tables->count / 2 : tables->count;
    uint32_t *const position = static_cast<uint32_t *>(workspace);
    size_t coded = 0;
    for (size_t i = 0; i < count; i++) {
        if (table_index[i] >= base)
            return LINNET_ERROR_ARGUMENT;
        position[coded] = uint32_t(i);
        coded += tables->flags[table_index[i]] & linnet::kCoded;
    }
    std::fill_n(symbols, count, int16_t(0));
    std::fill_n(levels, count, int16_t(0));
    int16_t *const candidate = reinterpret_cast<int16_t *>(position + padded(count));
    uint8_t *const ways = reinterpret_cast<uint8_t *>(candidate + 4 * padded(count));
    const Search search = {*tables, base, bit_worth, residual, table_index, coded, position, candidate, ways};
    if (!trellis) {
        choose_each_alone(search, symbols, levels);
        return LINNET_OK;
    }
    uint32_t end[kLanes] = {};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        follow_avx2(search, end);
    else
#endif
        follow(search, end);
    trace_back(search, end, symbols, levels);
    return LINNET_OK;
}
