// The entropy tables as the coder and the encoder's search read them. Not part of the interface.
#pragma once

#include "linnet.h"

namespace linnet {

constexpr uint32_t kFrequencySum = 1u << LINNET_FREQUENCY_BITS;
constexpr uint32_t kEscapeBits = 10;
constexpr uint32_t kCellBits = 6;  // a cell is 64 neighbouring slots
constexpr uint32_t kCells = kFrequencySum >> kCellBits;

struct DecodeSymbol {
    uint16_t start, frequency;
};

struct EncodeSymbol {
    uint64_t inverse;
    uint32_t limit;  // frequency << 18: from here on a word leaves the state first
    uint16_t start, complement;
};

struct Table {
    uint16_t cell[kCells];       // the symbol that holds the cell's first slot
    const DecodeSymbol *decode;  // 2r + 2 and two sentinels that no slot reaches
    const EncodeSymbol *encode;
    const float *bits;  // of the magnitudes 0..r, then twice of what escapes
    int32_t radius;
};

enum Flags : uint8_t { kCoded = 1, kUnknownTable = 2, kBadSymbol = 4 };

}  // namespace linnet

struct linnet_tables {
    uint8_t flags[256];  // by table index, so that checking costs nothing beyond the look-up
    uint32_t count;
    bool paired;  // the second half codes what the first half codes: tables of two quantisers
    linnet::Table table[LINNET_MAX_TABLES];
    linnet::DecodeSymbol *decode = nullptr;
    linnet::EncodeSymbol *encode = nullptr;
    float *bits = nullptr;

    ~linnet_tables()
    {
        delete[] decode;
        delete[] encode;
        delete[] bits;
    }
};
