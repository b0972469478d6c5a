// CRC-32C: eight bytes per step, with the processor's instruction where it has one.
#include <array>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace linnet {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli, bits reversed

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

// Table k carries one byte past k further zero bytes, so that the eight look-ups of a step are independent.
constexpr CrcTables make_tables()
{
    CrcTables tables{};
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
        tables[0][byte] = crc;
    }
    for (size_t k = 1; k < 8; k++)
        for (uint32_t byte = 0; byte < 256; byte++)
            tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 255];
    return tables;
}

constexpr CrcTables kTables = make_tables();

}  // namespace

uint32_t update_crc_plain(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; size -= 8, data += 8) {
        crc ^= data[0] | uint32_t(data[1]) << 8 | uint32_t(data[2]) << 16 | uint32_t(data[3]) << 24;
        crc = kTables[7][crc & 255] ^ kTables[6][crc >> 8 & 255] ^ kTables[5][crc >> 16 & 255] ^ kTables[4][crc >> 24] ^
              kTables[3][data[4]] ^ kTables[2][data[5]] ^ kTables[1][data[6]] ^ kTables[0][data[7]];
    }
    for (; size; size--, data++)
        crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 255];
    return crc;
}

#if defined(__x86_64__)
namespace {

__attribute__((target("sse4.2"))) uint32_t update_crc_sse42(uint32_t crc, const uint8_t *data, size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t bytes;
        std::memcpy(&bytes, data, 8);
        wide = _mm_crc32_u64(wide, bytes);
    }
    crc = uint32_t(wide);
    for (; size; size--, data++)
        crc = _mm_crc32_u8(crc, *data);
    return crc;
}

}  // namespace

UpdateCrc best_update_crc()
{
    return __builtin_cpu_supports("sse4.2") ? update_crc_sse42 : update_crc_plain;
}

#elif defined(__aarch64__) && defined(__linux__) && defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
namespace {

// The instructions by their names: the compilers' intrinsics for them need the whole file built for ARMv8.1.
uint32_t update_crc_armv8(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; size -= 8, data += 8) {
        uint64_t bytes;
        std::memcpy(&bytes, data, 8);
        __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(bytes));
    }
    for (; size; size--, data++)
        __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"(uint32_t(*data)));
    return crc;
}

constexpr unsigned long kHardwareCapabilityCrc32 = 1ul << 7;  // HWCAP_CRC32 of Linux on arm64

}  // namespace

UpdateCrc best_update_crc()
{
    return (getauxval(AT_HWCAP) & kHardwareCapabilityCrc32) ? update_crc_armv8 : update_crc_plain;
}

#else

UpdateCrc best_update_crc()
{
    return update_crc_plain;
}

#endif

}  // namespace linnet

uint32_t linnet_crc32c(uint32_t crc, const uint8_t *data, size_t size)
{
    return size ? ~linnet::best_update_crc()(~crc, data, size) : crc;
}
