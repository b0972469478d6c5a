// The entropy coder: integer frequency tables and a four-lane rANS. linnet.h holds the definition of the stream.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>

#include "kernels.h"
#include "tables.h"

namespace {

using linnet::DecodeSymbol, linnet::EncodeSymbol, linnet::Table;
using linnet::kBadSymbol, linnet::kCellBits, linnet::kCells, linnet::kCoded, linnet::kEscapeBits,
    linnet::kFrequencySum, linnet::kUnknownTable;

constexpr uint32_t kSlotMask = kFrequencySum - 1;
constexpr uint32_t kStateLow = 1u << 16;
constexpr uint32_t kStateBytes = 16;
constexpr uint32_t kEscapeMask = (1u << kEscapeBits) - 1;
constexpr uint32_t kEscapeLimit = 1u << (32 - kEscapeBits);
// A quotient x / frequency is (x * inverse) >> 46, with the inverse rounded up. Since x < frequency << 18 and
// frequency < 2^14, the product stays below 2^64 and the excess is too small to reach the next integer: it is exact.
constexpr uint32_t kInverseBits = 46;
constexpr size_t kChunk = 1024;  // positions whose coded symbols are listed at a time
constexpr ptrdiff_t kGroupBytes = 16;  // four symbols move at most two words each

// Bits of one of `frequency` in kFrequencySum, in units that log2's last digit, which differs between machines, does not
// reach: encoders must agree.
float bits_of(uint32_t frequency)
{
    return float(std::rint(4096 * (LINNET_FREQUENCY_BITS - std::log2(double(frequency)))) / 4096);
}

}  // namespace

int linnet_tables_create(const uint16_t *frequencies, size_t frequency_count, const uint16_t *radii, uint32_t count,
                         linnet_tables **tables)
{
    if (!tables)
        return LINNET_ERROR_ARGUMENT;
    *tables = nullptr;
    if (!radii || (!frequencies && frequency_count))
        return LINNET_ERROR_ARGUMENT;
    if (!count || count > LINNET_MAX_TABLES)
        return LINNET_ERROR_TABLES;
    size_t expected = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (radii[i] > LINNET_MAX_RADIUS)
            return LINNET_ERROR_TABLES;
        expected += radii[i] ? 2u * radii[i] + 2 : 0;
    }
    if (frequency_count != expected)
        return LINNET_ERROR_TABLES;

    linnet_tables *made = new (std::nothrow) linnet_tables;
    if (!made)
        return LINNET_ERROR_MEMORY;
    made->decode = new (std::nothrow) DecodeSymbol[expected + 2 * count];
    made->encode = new (std::nothrow) EncodeSymbol[expected + 1];
    made->bits = new (std::nothrow) float[expected + count];
    if (!made->decode || !made->encode || !made->bits) {
        delete made;
        return LINNET_ERROR_MEMORY;
    }
    std::fill(made->flags, made->flags + 256, uint8_t(kUnknownTable));
    made->count = count;
    made->paired = count % 2 == 0;
    for (uint32_t i = 0; i < count / 2; i++)
        made->paired = made->paired && !radii[i] == !radii[i + count / 2];
    DecodeSymbol *decode = made->decode;
    EncodeSymbol *encode = made->encode;
    float *bits = made->bits;
    for (uint32_t i = 0; i < count; i++) {
        Table &table = made->table[i];
        made->flags[i] = radii[i] ? kCoded : 0;
        if (!radii[i])
            continue;
        const uint32_t symbols = 2u * radii[i] + 2;
        table.radius = radii[i];
        table.decode = decode;
        table.encode = encode;
        table.bits = bits;
        uint32_t start = 0, cell = 0;
        for (uint32_t s = 0; s < symbols; s++) {
            const uint32_t frequency = *frequencies++;
            if (!frequency || start + frequency > kFrequencySum) {
                delete made;
                return LINNET_ERROR_TABLES;
            }
            *decode++ = {uint16_t(start), uint16_t(frequency)};
            *encode++ = {((uint64_t(1) << kInverseBits) + frequency - 1) / frequency, frequency << 18, uint16_t(start),
                         uint16_t(kFrequencySum - frequency)};
            if (s >= radii[i])
                *bits++ = bits_of(frequency) + (s + 1 == symbols ? kEscapeBits : 0);
            start += frequency;
            for (; cell < kCells && cell << kCellBits < start; cell++)
                table.cell[cell] = uint16_t(s);
        }
        if (start != kFrequencySum) {
            delete made;
            return LINNET_ERROR_TABLES;
        }
        bits[0] = bits[-1];
        bits++;
        *decode++ = {uint16_t(kFrequencySum), 0};
        *decode++ = {uint16_t(kFrequencySum), 0};
    }
    *tables = made;
    return LINNET_OK;
}

void linnet_tables_destroy(linnet_tables *tables)
{
    delete tables;
}

// ---- Encoder: from the last symbol to the first, words in the reverse of the order in which they are read ----

namespace {

struct Writer {
    uint8_t *next, *end;
    bool full;
};

// Unchecked writers may leave two bytes behind `next` that count for nothing; this saves a hardly predictable branch.
template <bool checked>
inline void flush(uint32_t &state, uint32_t limit, Writer &out)
{
    const bool flushed = state >= limit;
    if (checked && flushed && out.end - out.next < 2) {
        out.full = true;
        state >>= 16;
        return;
    }
    if (!checked || flushed) {
        out.next[0] = uint8_t(state);
        out.next[1] = uint8_t(state >> 8);
    }
    out.next += 2 * flushed;
    state = flushed ? state >> 16 : state;
}

template <bool checked>
inline void encode_symbol(const Table &table, int32_t symbol, uint32_t &state, Writer &out)
{
    uint32_t index = uint32_t(symbol + table.radius);
    if (__builtin_expect(index > 2u * uint32_t(table.radius), 0)) {
        index = 2u * uint32_t(table.radius) + 1;
        flush<checked>(state, kEscapeLimit, out);
        state = state << kEscapeBits | uint32_t(symbol - LINNET_MIN_SYMBOL);
    }
    const EncodeSymbol &code = table.encode[index];
    flush<checked>(state, code.limit, out);
    const uint32_t quotient = uint32_t((state * code.inverse) >> kInverseBits);
    state += code.start + quotient * code.complement;
}

void put_u32(uint8_t *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = uint8_t(value >> 8 * i);
}

}  // namespace

size_t linnet_rans_bound(size_t count)
{
    return count > (SIZE_MAX - kStateBytes) / 4 ? SIZE_MAX : kStateBytes + 4 * count;
}

int linnet_rans_encode(const linnet_tables *tables, const int16_t *symbols, const uint8_t *table_index, size_t count,
                       uint8_t *out, size_t capacity, size_t *written)
{
    if (!tables || !out || !written || (count && (!symbols || !table_index)))
        return LINNET_ERROR_ARGUMENT;
    *written = 0;
    if (capacity < kStateBytes)
        return LINNET_ERROR_CAPACITY;

    // The lanes are numbered from the end here, since the number of coded symbols is only known at the beginning.
    uint32_t lanes[4] = {kStateLow, kStateLow, kStateLow, kStateLow};
    size_t coded = 0;
    Writer writer = {out + kStateBytes, out + capacity, false};
    uint16_t position[kChunk];
    for (size_t end = count; end;) {
        const size_t begin = (end - 1) / kChunk * kChunk, length = end - begin;
        const int16_t *symbol = symbols + begin;
        const uint8_t *index = table_index + begin;
        end = begin;
        // In loops of one purpose each, without branches: most symbols are not coded, so looking at them is the work.
        uint8_t flag[kChunk];
        for (size_t i = 0; i < length; i++)
            flag[i] = tables->flags[index[i]];
        size_t n = 0;
        for (size_t i = 0; i < length; i++) {
            position[n] = uint16_t(i);
            n += flag[i] & kCoded;
        }
        uint8_t flags = 0;
        for (size_t i = 0; i < length; i++) {
            const int16_t is_coded = -int16_t(flag[i] & kCoded);
            const bool bad = symbol[i] < (is_coded & LINNET_MIN_SYMBOL) || symbol[i] > (is_coded & LINNET_MAX_SYMBOL);
            flags |= flag[i] | uint8_t(bad * kBadSymbol);
        }
        if (flags & kUnknownTable)
            return LINNET_ERROR_ARGUMENT;
        if (flags & kBadSymbol)
            return LINNET_ERROR_SYMBOL;

        uint32_t a = lanes[coded & 3], b = lanes[(coded + 1) & 3];
        uint32_t c = lanes[(coded + 2) & 3], d = lanes[(coded + 3) & 3];
        const auto encode = [&](auto checked, size_t k, uint32_t &state) {
            encode_symbol<checked.value>(tables->table[index[position[k]]], symbol[position[k]], state, writer);
        };
        constexpr std::false_type unchecked{};
        constexpr std::true_type checked{};
        size_t k = n;
        for (; k >= 4; k -= 4) {
            if (__builtin_expect(writer.end - writer.next >= kGroupBytes + 2, 1)) {
                encode(unchecked, k - 1, a);
                encode(unchecked, k - 2, b);
                encode(unchecked, k - 3, c);
                encode(unchecked, k - 4, d);
            } else {
                encode(checked, k - 1, a);
                encode(checked, k - 2, b);
                encode(checked, k - 3, c);
                encode(checked, k - 4, d);
            }
        }
        if (k >= 1)
            encode(checked, k - 1, a);
        if (k >= 2)
            encode(checked, k - 2, b);
        if (k >= 3)
            encode(checked, k - 3, c);
        lanes[coded & 3] = a;
        lanes[(coded + 1) & 3] = b;
        lanes[(coded + 2) & 3] = c;
        lanes[(coded + 3) & 3] = d;
        coded += n;
        if (writer.full)
            return LINNET_ERROR_CAPACITY;
    }
    for (size_t lane = 0; lane < 4; lane++)
        put_u32(out + 4 * lane, lanes[(coded - 1 - lane) & 3]);
    for (uint8_t *low = out + kStateBytes, *high = writer.next - 2; low < high; low += 2, high -= 2) {
        std::swap(low[0], high[0]);
        std::swap(low[1], high[1]);
    }
    *written = size_t(writer.next - out);
    return LINNET_OK;
}

// ---- Decoder ----

namespace {

struct Reader {
    const uint8_t *next, *end;
    int error;
};

template <bool checked>
inline void renew(uint32_t &state, Reader &in)
{
    const bool low = state < kStateLow;
    if (checked) {
        if (!low)
            return;
        if (in.next == in.end) {  // the state stays small, which harms nobody
            in.error = in.error ? in.error : LINNET_ERROR_TRUNCATED;
            return;
        }
    }
    const uint32_t word = in.next[0] | uint32_t(in.next[1]) << 8;
    in.next += 2 * low;
    state = low ? state << 16 | word : state;
}

template <bool checked>
inline int16_t decode_symbol(const Table &table, uint32_t &state, Reader &in)
{
    const uint32_t slot = state & kSlotMask;
    const DecodeSymbol *code = table.decode + table.cell[slot >> kCellBits];
    // Two steps without a branch, since most cells hold one to three symbols; the sentinels end the rest.
    code += (slot >= code[1].start) + (slot >= code[2].start);
    while (__builtin_expect(slot >= code[1].start, 0))
        code++;
    state = code->frequency * (state >> LINNET_FREQUENCY_BITS) + slot - code->start;
    renew<checked>(state, in);
    int32_t symbol = int32_t(code - table.decode) - table.radius;
    if (__builtin_expect(symbol > table.radius, 0)) {
        symbol = int32_t(state & kEscapeMask) + LINNET_MIN_SYMBOL;
        state >>= kEscapeBits;
        renew<checked>(state, in);
        if (symbol >= -table.radius && symbol <= table.radius)
            in.error = in.error ? in.error : LINNET_ERROR_CORRUPT;
    }
    return int16_t(symbol);
}

uint32_t get_u32(const uint8_t *in)
{
    return in[0] | uint32_t(in[1]) << 8 | uint32_t(in[2]) << 16 | uint32_t(in[3]) << 24;
}

}  // namespace

int linnet_rans_decode_start(linnet_rans_decoder *decoder, const uint8_t *data, size_t size)
{
    if (!decoder || (!data && size))
        return LINNET_ERROR_ARGUMENT;
    std::memset(decoder, 0, sizeof *decoder);
    if (size < kStateBytes)
        return decoder->error = LINNET_ERROR_TRUNCATED;
    if (size % 2)
        return decoder->error = LINNET_ERROR_CORRUPT;
    for (int lane = 0; lane < 4; lane++) {
        decoder->state[lane] = get_u32(data + 4 * lane);
        if (decoder->state[lane] < kStateLow)
            return decoder->error = LINNET_ERROR_CORRUPT;
    }
    decoder->next = data + kStateBytes;
    decoder->end = data + size;
    return LINNET_OK;
}

namespace {

// Along a trellis each lane goes through its states, whose quantiser says in which half of the tables a symbol's is.
template <const linnet::Trellis &trellis>
int decode_levels(const linnet_tables *tables, linnet_rans_decoder *decoder, const uint8_t *table_index, size_t count,
                  int16_t *levels)
{
    const uint32_t base = trellis.states > 1 ? tables->count / 2 : tables->count;
    uint32_t path[4] = {};  // by lane
    Reader reader = {decoder->next, decoder->end, LINNET_OK};
    uint16_t position[kChunk];
    for (size_t begin = 0; begin < count; begin += kChunk) {
        const size_t length = std::min(count - begin, kChunk);
        const uint8_t *index = table_index + begin;
        int16_t *level = levels + begin;
        size_t n = 0;
        uint32_t flags = 0;
        for (size_t i = 0; i < length; i++) {
            const uint32_t flag = tables->flags[index[i]];
            flags |= flag | uint32_t(index[i] >= base) * kUnknownTable;
            position[n] = uint16_t(i);
            n += flag & kCoded;
        }
        if (flags & kUnknownTable)
            return decoder->error = LINNET_ERROR_ARGUMENT;
        std::memset(level, 0, length * sizeof *level);

        const uint32_t lane = decoder->lane;
        uint32_t a = decoder->state[lane], b = decoder->state[(lane + 1) & 3];
        uint32_t c = decoder->state[(lane + 2) & 3], d = decoder->state[(lane + 3) & 3];
        uint32_t path_a = path[lane], path_b = path[(lane + 1) & 3];
        uint32_t path_c = path[(lane + 2) & 3], path_d = path[(lane + 3) & 3];
        const auto decode = [&](auto checked, size_t k, uint32_t &state, uint32_t &path) {
            const size_t i = position[k];
            const Table &table = tables->table[index[i] + base * (path & 1)];
            const int32_t symbol = decode_symbol<checked.value>(table, state, reader);
            level[i] = int16_t(linnet::level_of(symbol, path));
            path = trellis.next(path, uint32_t(symbol));
        };
        constexpr std::false_type unchecked{};
        constexpr std::true_type checked{};
        size_t k = 0;
        for (; k + 4 <= n; k += 4) {
            if (__builtin_expect(reader.end - reader.next >= kGroupBytes + 2, 1)) {
                decode(unchecked, k, a, path_a);
                decode(unchecked, k + 1, b, path_b);
                decode(unchecked, k + 2, c, path_c);
                decode(unchecked, k + 3, d, path_d);
            } else {
                decode(checked, k, a, path_a);
                decode(checked, k + 1, b, path_b);
                decode(checked, k + 2, c, path_c);
                decode(checked, k + 3, d, path_d);
            }
        }
        if (k < n)
            decode(checked, k, a, path_a);
        if (k + 1 < n)
            decode(checked, k + 1, b, path_b);
        if (k + 2 < n)
            decode(checked, k + 2, c, path_c);
        decoder->state[lane] = a;
        decoder->state[(lane + 1) & 3] = b;
        decoder->state[(lane + 2) & 3] = c;
        decoder->state[(lane + 3) & 3] = d;
        path[lane] = path_a;
        path[(lane + 1) & 3] = path_b;
        path[(lane + 2) & 3] = path_c;
        path[(lane + 3) & 3] = path_d;
        decoder->lane = uint32_t(lane + n) & 3;
        if (reader.error)
            return decoder->error = reader.error;
    }
    decoder->next = reader.next;
    return LINNET_OK;
}

}  // namespace

int linnet_rans_decode(const linnet_tables *tables, linnet_rans_decoder *decoder, int trellis,
                       const uint8_t *table_index, size_t count, int16_t *levels)
{
    if (!tables || !decoder || (count && (!levels || !table_index)) || (trellis && !tables->paired) ||
        !linnet::known_trellis(trellis))
        return LINNET_ERROR_ARGUMENT;
    if (decoder->error)
        return decoder->error;
    const auto decode = !trellis ? decode_levels<linnet::kNoTrellis>
                        : uint32_t(trellis) == linnet::kTrellis.states ? decode_levels<linnet::kTrellis>
                                                                       : decode_levels<linnet::kSmallTrellis>;
    return decode(tables, decoder, table_index, count, levels);
}

int linnet_rans_decode_finish(linnet_rans_decoder *decoder)
{
    if (!decoder)
        return LINNET_ERROR_ARGUMENT;
    if (decoder->error)
        return decoder->error;
    bool complete = decoder->next == decoder->end;
    for (const uint32_t state : decoder->state)
        complete = complete && state == kStateLow;
    return complete ? LINNET_OK : (decoder->error = LINNET_ERROR_CORRUPT);
}
