// The hot loops that exist twice: a plain one that defines the result, and the best one for the processor at hand.
// Not part of the interface; the native test driver compares the two. Every pair gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linnet.h"

// What is inlined into functions for other processors is compiled for those.
#define LINNET_INLINE inline __attribute__((always_inline))

namespace linnet {

// Raw CRC register in, raw register out (no inversions).
using UpdateCrc = uint32_t (*)(uint32_t crc, const uint8_t *data, size_t size);
uint32_t update_crc_plain(uint32_t crc, const uint8_t *data, size_t size);
UpdateCrc best_update_crc();

// Two rows of 2 * blocks pixels to `blocks` groups of twelve, and back. Touches exactly those bytes.
using BlocksToPlanes = void (*)(const uint8_t *top, const uint8_t *bottom, size_t blocks, int8_t *planes);
void blocks_to_planes_plain(const uint8_t *top, const uint8_t *bottom, size_t blocks, int8_t *planes);
BlocksToPlanes best_blocks_to_planes();

using PlanesToBlocks = void (*)(const int8_t *planes, size_t blocks, uint8_t *top, uint8_t *bottom);
void planes_to_blocks_plain(const int8_t *planes, size_t blocks, uint8_t *top, uint8_t *bottom);
PlanesToBlocks best_planes_to_blocks();

// `count` values as the table (256) has them at value + 128.
using Compand = void (*)(const int8_t *table, const int8_t *values, size_t count, int8_t *companded);
void compand_plain(const int8_t *table, const int8_t *values, size_t count, int8_t *companded);
Compand best_compand();

// What the channels [3g, 3g + 3) of a convolution are made of: `pairs` planes of two channels each, `plane` and `row`
// positions apart, under weights (pairs, size, size, 3, 2).
struct FilterPart {
    const int16_t *weight;
    uint32_t pairs, size;
    size_t plane, row;
};
constexpr uint32_t kFilterOutputs = 3, kFilterStrip = 24;

// `sums` (3, 24) of the `count` <= 24 neighbouring positions whose kernels begin at `source`; sums wrap around, and the
// others are unspecified.
using FilterStrip = void (*)(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums);
void filter_strip_plain(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums);
FilterStrip best_filter_strip();

// A trellis: of a state S and the parity of a symbol follows the next state. Every state is left, and entered, in two ways.
// Odd states have the second quantiser. Eight states are those of Schwarz et al. (2019) by other names; the 64 were
// found by what latents of photographs cost along all trellises of this form.
struct Trellis {
    uint32_t states;  // a power of two
    uint32_t odd;     // at least states / 2
    uint32_t parity;  // even, and less than states / 2

    constexpr uint32_t next(uint32_t state, uint32_t symbol) const
    {
        return (state >> 1) ^ (state & 1 ? odd : 0) ^ (symbol & 1 ? parity : 0);
    }

    // The state before `state`, if the symbol was of this parity.
    constexpr uint32_t before(uint32_t state, uint32_t symbol) const
    {
        const bool was_odd = state >= states / 2;
        return 2 * (state ^ (was_odd ? odd : 0) ^ (symbol & 1 ? parity : 0)) + was_odd;
    }
};
constexpr Trellis kNoTrellis = {1, 0, 0}, kSmallTrellis = {8, 7, 2}, kTrellis = {64, 62, 22};

constexpr bool known_trellis(int states)
{
    return !states || uint32_t(states) == kSmallTrellis.states || uint32_t(states) == kTrellis.states;
}

// The level, in half steps, that `symbol` stands for in a state: even ones where it is even, odd ones and 0 where not.
constexpr int32_t level_of(int32_t symbol, uint32_t state)
{
    return 2 * symbol - int32_t(state & 1) * ((symbol > 0) - (symbol < 0));
}

}  // namespace linnet
