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
    int16_t symbol[4][kLanes];
};

inline float cost_of(const linnet::Table &table, float magnitude, float level, int32_t symbol, float bit_worth)
{
    const float error = magnitude - level;
    return error * error + bit_worth * table.bits[std::min(symbol, table.radius + 1)];
}

// Both parities of one quantiser: the levels on both sides of the residual, and zero instead of the even one.
inline void choose(const linnet::Table &table, int32_t quantiser, float residual, float bit_worth, uint32_t lane,
                   Choices &choices)
{
    const float half = quantiser ? 0.5f : 0, wanted = __builtin_fabsf(residual);
    const float magnitude = wanted < kMaxMagnitude ? wanted : kMaxMagnitude;
    const int32_t below = std::min(int32_t(magnitude + half), LINNET_MAX_SYMBOL - 1), sign = residual < 0 ? -1 : 1;
    const int32_t odd = below | 1, even = (below + 1) & ~1;
    const float nothing = cost_of(table, magnitude, 0, 0, bit_worth);
    const float even_cost = even ? cost_of(table, magnitude, float(even) - half, even, bit_worth) : nothing;
    choices.cost[2 * quantiser][lane] = nothing < even_cost ? nothing : even_cost;
    choices.symbol[2 * quantiser][lane] = int16_t(nothing < even_cost ? 0 : sign * even);
    choices.cost[2 * quantiser + 1][lane] = cost_of(table, magnitude, float(odd) - half, odd, bit_worth);
    choices.symbol[2 * quantiser + 1][lane] = int16_t(sign * odd);
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
    Choices choices = {};
    if (!trellis) {
        for (size_t k = 0; k < coded; k++) {
            const size_t i = position[k];
            choose(tables->table[table_index[i]], 0, number(residual[i]), bit_worth, 0, choices);
            symbols[i] = choices.symbol[choices.cost[1][0] < choices.cost[0][0]][0];
            levels[i] = int16_t(2 * symbols[i]);
        }
        return LINNET_OK;
    }

    int16_t *const candidate = reinterpret_cast<int16_t *>(position + count);  // four for each coded symbol
    uint8_t *const ways = reinterpret_cast<uint8_t *>(candidate + 4 * count);
    Trellises trellises;
    uint32_t end[kLanes];
    for (size_t first = 0; first < coded; first += kLanes) {
        const uint32_t lanes = uint32_t(std::min<size_t>(kLanes, coded - first));
        for (uint32_t lane = 0; lane < lanes; lane++) {
            const size_t i = position[first + lane];
            for (int32_t quantiser = 0; quantiser < 2; quantiser++)
                choose(tables->table[table_index[i] + base * uint32_t(quantiser)], quantiser, number(residual[i]),
                       bit_worth, lane, choices);
            for (uint32_t c = 0; c < 4; c++)
                candidate[4 * (first + lane) + c] = choices.symbol[c][lane];
        }
        for (uint32_t lane = lanes; lane < kLanes; lane++)
            end[lane] = trellises.best(lane);  // of a trellis that ended one symbol before the others
        uint8_t way[kLanes];
        trellises.step(choices, way);
        std::copy(way, way + lanes, ways + first);
    }
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
