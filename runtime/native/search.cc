// Which symbols an encoder writes: the ones of least squared error and bits together, along a trellis or one
// by one. linnet.h says what a decoder makes of them; how they are chosen is the encoder's own business.
#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels.h"
#include "tables.h"

namespace {

constexpr uint32_t kLanes = 4;
constexpr float kMaxMagnitude = LINNET_MAX_SYMBOL;
constexpr size_t kBytesPerSymbol = 20;

// A number for each lane. GCC and Clang turn these into the vectors of whatever processor it is.
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef int16_t Shorts __attribute__((vector_size(2 * kLanes)));
// Of two states at once, for processors with wider vectors.
typedef float Pair __attribute__((vector_size(8 * kLanes)));
typedef int32_t PairOfBits __attribute__((vector_size(8 * kLanes)));

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

#if defined(__clang__)
#define LINNET_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LINNET_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, PairOfBits{__VA_ARGS__})
#endif

// Vectors of one state each, or of two neighbours: numbers for all states less the first state's, the states swapped, and
// what belongs to even and to odd states.
LINNET_INLINE void subtract_first(const Floats &all, const Floats &from, Floats &rest)
{
    rest = all - from;
}

LINNET_INLINE void subtract_first(const Floats &all, const Pair &from, Pair &rest)
{
    rest = Pair{all[0], all[1], all[2], all[3], all[0], all[1], all[2], all[3]} -
           LINNET_SHUFFLE(from, from, 0, 1, 2, 3, 0, 1, 2, 3);
}

LINNET_INLINE void swap_neighbours(Floats &)
{
}

LINNET_INLINE void swap_neighbours(Pair &x)
{
    x = LINNET_SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
}

LINNET_INLINE void part(const Floats &first, const Floats &second, Floats &even, Floats &odd)
{
    even = first;
    odd = second;
}

LINNET_INLINE void part(const Pair &first, const Pair &second, Pair &even, Pair &odd)
{
    even = LINNET_SHUFFLE(first, second, 0, 1, 2, 3, 8, 9, 10, 11);
    odd = LINNET_SHUFFLE(first, second, 4, 5, 6, 7, 12, 13, 14, 15);
}

// Viterbi's algorithm over four trellises side by side. The path to each state ends in a symbol of one parity, a bit of
// `ways`. Even states are followed by those of the lower half, odd ones by those of the upper half.
template <const linnet::Trellis &trellis, typename Numbers>
struct Trellises {
    using Bits = decltype(Numbers{} < Numbers{});
    static constexpr uint32_t kTogether = sizeof(Numbers) / sizeof(Floats);  // states in a vector
    static constexpr uint32_t kVectors = trellis.states / 2 / kTogether;

    Numbers even[kVectors], odd[kVectors];  // what the paths to the states 0, 2, 4, ... and 1, 3, 5, ... cost

    Trellises()
    {
        for (uint32_t i = 0; i < kVectors; i++)
            even[i] = odd[i] = Numbers{} + std::numeric_limits<float>::infinity();
        for (uint32_t lane = 0; lane < kLanes; lane++)
            even[0][lane] = 0;
    }

    // Moves all lanes on to `next`; of `ways` (2 * kLanes) the first half receives a bit for each even state, the second
    // for each odd one.
    LINNET_INLINE void step(const Choices &choices, Trellises &next, uint32_t *ways) const
    {
        Numbers choice[4];
        for (uint32_t c = 0; c < 4; c++)
            subtract_first(choices.cost[c], even[0], choice[c]);  // so that costs stay small
        Bits way[2 / kTogether] = {}, way_up[2 / kTogether] = {};
        advance<0>(even, choice, next, 0, way);
        advance<(trellis.odd & (trellis.states / 2 - 1))>(odd, choice + 2, next, kVectors / 2, way_up);
        for (uint32_t i = 0; i < 2 / kTogether; i++)
            way[i] |= way_up[i];
        std::memcpy(ways, way, sizeof way);
    }

    // The state whose path costs least, of one lane.
    uint32_t best(uint32_t lane) const
    {
        float cost[trellis.states][kLanes];
        std::memcpy(cost, this, sizeof cost);
        uint32_t found = 0;
        for (uint32_t i = 1; i < trellis.states; i++)
            found = cost[i][lane] < cost[found][lane] ? i : found;
        return found < trellis.states / 2 ? 2 * found : 2 * found + 1 - trellis.states;
    }

private:
    // From all even or all odd states, `moved` by a mask, to half of the next ones, which begin at `first`.
    template <uint32_t moved>
    static LINNET_INLINE void advance(const Numbers *from, const Numbers *choice, Trellises &next, uint32_t first,
                                      Bits *way)
    {
        for (uint32_t i = 0; i < kVectors; i += 2) {
            Numbers both[2];
            for (uint32_t j = 0; j < 2; j++)
                enter<moved>(from, choice, i + j, both[j], kTogether * first + (i + j) * kTogether / 2,
                             way[j % (2 / kTogether)]);
            part(both[0], both[1], next.even[first + i / 2], next.odd[first + i / 2]);
        }
    }

    // The better of the two ways into each state of a vector: by an even symbol, or by an odd one, which sets `bit`.
    template <uint32_t moved>
    static LINNET_INLINE void enter(const Numbers *from, const Numbers *choice, uint32_t i, Numbers &cost, uint32_t bit,
                                    Bits &way)
    {
        Numbers a = from[i ^ moved / kTogether], b = from[i ^ (moved ^ trellis.parity) / kTogether];
        if constexpr (moved % 2) {
            swap_neighbours(a);
            swap_neighbours(b);
        }
        a += choice[0];
        b += choice[1];
        const Bits better = b < a;
        cost = b < a ? b : a;
        way |= better & int32_t(1u << bit);
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
    const uint8_t *table_index;
    size_t coded;
    uint32_t *position;  // of each coded symbol in the call's arrays
    uint32_t *ways;      // for each kLanes symbols those of a Trellises' step
    int16_t *candidate;  // for each kLanes symbols Choices' four, lane by lane

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
template <const linnet::Trellis &trellis, typename Numbers>
LINNET_INLINE void follow(Search search, uint32_t *end)
{
    Trellises<trellis, Numbers> trellises[2], *now = trellises, *next = trellises + 1;
    Choices choices = {};
    for (size_t first = 0; first < search.coded; first += kLanes) {
        search.choose_at(first, 2, choices);
        for (uint32_t c = 0; c < 4; c++) {
            const Shorts symbols = __builtin_convertvector(choices.symbol[c], Shorts);
            std::memcpy(search.candidate + 4 * first + kLanes * c, &symbols, sizeof symbols);
        }
        for (uint32_t lane = search.lanes(first); lane < kLanes; lane++)
            end[lane] = now->best(lane);  // of a trellis that ended one symbol before the others
        now->step(choices, *next, search.ways + 2 * first);
        std::swap(now, next);
    }
    const uint32_t ended = search.coded % kLanes ? uint32_t(search.coded % kLanes) : kLanes;
    for (uint32_t lane = 0; lane < ended; lane++)
        end[lane] = now->best(lane);
}

#if defined(__x86_64__)
// The same with instructions for selecting numbers, which SSE2 lacks.
template <const linnet::Trellis &trellis>
__attribute__((target("avx2"))) void follow_avx2(Search search, uint32_t *end)
{
    follow<trellis, Pair>(search, end);
}
#endif

// The best paths, from the states in which they end to their beginnings.
template <const linnet::Trellis &trellis>
void trace_back(Search search, const uint32_t *end, int16_t *levels, int16_t *symbols, uint8_t *coded_with)
{
    uint32_t state[kLanes];
    std::copy(end, end + kLanes, state);
    for (size_t group = (search.coded + kLanes - 1) / kLanes; group--;) {
        const size_t first = kLanes * group;
        const uint32_t lanes = search.lanes(first);
        const int16_t *const candidate = search.candidate + 4 * first;
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const uint32_t *const ways = search.ways + 2 * first + kLanes * (state[lane] & 1);
            const uint32_t parity = ways[lane] >> state[lane] / 2 & 1;
            state[lane] = trellis.before(state[lane], parity);
            const uint32_t quantiser = state[lane] & 1;
            const size_t i = search.position[first + lane];
            const int16_t symbol = candidate[kLanes * (2 * quantiser + parity) + lane];
            levels[i] = int16_t(linnet::level_of(symbol, state[lane]));
            symbols[first + lane] = symbol;
            coded_with[first + lane] = uint8_t(search.table_index[i] + search.base * quantiser);
        }
    }
}

template <const linnet::Trellis &trellis>
void choose_along(Search search, int16_t *levels, int16_t *symbols, uint8_t *coded_with)
{
    uint32_t end[kLanes] = {};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        follow_avx2<trellis>(search, end);
    else
#endif
        follow<trellis, Floats>(search, end);
    trace_back<trellis>(search, end, levels, symbols, coded_with);
}

void choose_each_alone(Search search, int16_t *levels, int16_t *symbols, uint8_t *coded_with)
{
    Choices choices = {};
    for (size_t first = 0; first < search.coded; first += kLanes) {
        search.choose_at(first, 1, choices);
        const Integers symbol = choices.cost[1] < choices.cost[0] ? choices.symbol[1] : choices.symbol[0];
        for (uint32_t lane = 0; lane < search.lanes(first); lane++) {
            const size_t i = search.position[first + lane];
            levels[i] = int16_t(2 * symbol[lane]);
            symbols[first + lane] = int16_t(symbol[lane]);
            coded_with[first + lane] = search.table_index[i];
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
                  const uint8_t *table_index, size_t count, void *workspace, int16_t *levels, int16_t *symbols,
                  uint8_t *coded_with, size_t *coded)
{
    if (!tables || !coded)
        return LINNET_ERROR_ARGUMENT;
    if (count && (!residual || !table_index || !workspace || !levels || !symbols || !coded_with))
        return LINNET_ERROR_ARGUMENT;
    if (!linnet::known_trellis(trellis) || (trellis && !tables->paired))
        return LINNET_ERROR_ARGUMENT;
    if (!(bit_worth >= 0 && bit_worth <= LINNET_MAX_BIT_WORTH) || count > UINT32_MAX)
        return LINNET_ERROR_ARGUMENT;
    const uint32_t base = trellis ? tables->count / 2 : tables->count;
    uint32_t *const position = static_cast<uint32_t *>(workspace);
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (table_index[i] >= base)
            return LINNET_ERROR_ARGUMENT;
        position[found] = uint32_t(i);
        found += tables->flags[table_index[i]] & linnet::kCoded;
    }
    *coded = found;
    std::fill_n(levels, count, int16_t(0));
    uint32_t *const ways = position + padded(count);
    int16_t *const candidate = reinterpret_cast<int16_t *>(ways + 2 * padded(count));
    const Search search = {*tables, base, bit_worth, residual, table_index, found, position, ways, candidate};
    const auto choose = !trellis ? choose_each_alone
                        : uint32_t(trellis) == linnet::kTrellis.states ? choose_along<linnet::kTrellis>
                                                                       : choose_along<linnet::kSmallTrellis>;
    choose(search, levels, symbols, coded_with);
    return LINNET_OK;
}
