// Which symbols an encoder writes: the ones of least squared error and bits together, along a trellis of eight states or
// one by one. linnet.h says what a decoder makes of them; how they are chosen is the encoder's own business.
#include <algorithm>
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

// The best symbol of each quantiser and parity (index 2 * quantiser + parity) for each lane, and what it costs.
struct Choices {
    Floats cost[4];
    Integers symbol[4];
};

// Both parities of one quantiser: the levels on both sides of the residual, and zero instead of the even one.
inline void choose(const linnet::Table *const *tables, int32_t quantiser, Floats residual, float bit_worth,
                   Choices &choices)
{
    const float half = quantiser ? 0.5f : 0;
    const Floats wanted = residual < 0 ? -residual : residual;
    const Floats magnitude = wanted < kMaxMagnitude ? wanted : Floats{} + kMaxMagnitude;
    const Integers whole = __builtin_convertvector(magnitude + half, Integers);
    const Integers below = whole < LINNET_MAX_SYMBOL - 1 ? whole : Integers{} + (LINNET_MAX_SYMBOL - 1);
    Floats bits_below, bits_above, bits_zero;
    for (uint32_t lane = 0; lane < kLanes; lane++) {
        const linnet::Table &table = *tables[lane];
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
    void step(const Choices &choices, uint8_t *ways)
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
        for (uint32_t lane = 0; lane < kLanes; lane++)
            ways[lane] = uint8_t(way[lane]);
    }

    uint32_t best(uint32_t lane) const
    {
        uint32_t found = 0;
        for (uint32_t state = 1; state < kStates; state++)
            found = cost[state][lane] < cost[found][lane] ? state : found;
        return found;
    }
};

inline float number(float residual)
{
    return residual == residual ? residual : 0;  // NaN
}

}  // namespace

size_t linnet_search_size(size_t count)
{
    return count > (SIZE_MAX - 4) / kBytesPerSymbol ? SIZE_MAX : kBytesPerSymbol * count;
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
        symbols[i] = levels[i] = 0;
    }

    int16_t *const candidate = reinterpret_cast<int16_t *>(position + count);  // four for each coded symbol
    uint8_t *const ways = reinterpret_cast<uint8_t *>(candidate + 4 * count);
    Choices choices = {};
    Trellises trellises;
    uint32_t end[kLanes];
    for (size_t first = 0; first < coded; first += kLanes) {
        const uint32_t lanes = uint32_t(std::min<size_t>(kLanes, coded - first));
        const linnet::Table *own[2][kLanes];
        Floats residuals;
        for (uint32_t lane = 0; lane < kLanes; lane++) {
            const size_t i = position[first + std::min(lane, lanes - 1)];
            own[0][lane] = tables->table + table_index[i];
            own[1][lane] = own[0][lane] + (trellis ? base : 0);
            residuals[lane] = number(residual[i]);
        }
        choose(own[0], 0, residuals, bit_worth, choices);
        if (!trellis) {
            const Integers symbol = choices.cost[1] < choices.cost[0] ? choices.symbol[1] : choices.symbol[0];
            for (uint32_t lane = 0; lane < lanes; lane++) {
                symbols[position[first + lane]] = int16_t(symbol[lane]);
                levels[position[first + lane]] = int16_t(2 * symbol[lane]);
            }
            continue;
        }
        choose(own[1], 1, residuals, bit_worth, choices);
        for (uint32_t lane = 0; lane < lanes; lane++)
            for (uint32_t c = 0; c < 4; c++)
                candidate[4 * (first + lane) + c] = int16_t(choices.symbol[c][lane]);
        for (uint32_t lane = lanes; lane < kLanes; lane++)
            end[lane] = trellises.best(lane);  // of a trellis that ended one symbol before the others
        uint8_t way[kLanes];
        trellises.step(choices, way);
        std::copy(way, way + lanes, ways + first);
    }
    if (!trellis)
        return LINNET_OK;
    const uint32_t ended = coded % kLanes ? uint32_t(coded % kLanes) : kLanes;
    for (uint32_t lane = 0; lane < ended; lane++)
        end[lane] = trellises.best(lane);
    for (size_t k = coded; k--;) {
        uint32_t &state = end[k % kLanes];
        const Way way = kWays.into[state][ways[k] >> state & 1];
        const size_t i = position[k];
        symbols[i] = candidate[4 * k + 2 * (way.from & 1) + way.parity];
        levels[i] = int16_t(linnet::level_of(symbols[i], way.from));
        table_index[i] = uint8_t(table_index[i] + base * (way.from & 1));
        state = way.from;
    }
    return LINNET_OK;
}
