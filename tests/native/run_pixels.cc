// Runs the kernels of pixels.cu on the CPU, thread by thread: built with the sanitizers by tests/test_cuda_pixels.py.
// Every buffer has exactly its size, so that one byte too far is found, and so is a wide access that is not aligned.
//
// Reads calls from stdin, all numbers int32: kernel, grid (x, y), block (x, y), buffers, integers; then each buffer's
// size, distance from a multiple of 16 bytes, and content; then the integers. Answers with the buffers' contents.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

struct Index {
    unsigned x, y;
};
static Index blockIdx, threadIdx, blockDim;
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
#define __global__
#define __device__
#define __forceinline__ inline

#include "pixels.cu"

static bool read(void *to, size_t size)
{
    return std::fread(to, 1, size, stdin) == size;
}

int main()
{
    int32_t call[7];
    while (read(call, sizeof call)) {
        std::vector<uint8_t *> allocations, b;
        std::vector<size_t> sizes;
        for (int i = 0; i < call[5]; i++) {
            int32_t size, distance;
            if (!read(&size, 4) || !read(&distance, 4))
                return 1;
            uint8_t *memory = static_cast<uint8_t *>(std::malloc(size_t(size + distance)));  // at 16 n
            if (!memory || !read(memory + distance, size_t(size)))
                return 1;
            allocations.push_back(memory);
            b.push_back(memory + distance);
            sizes.push_back(size_t(size));
        }
        std::vector<int32_t> n(static_cast<size_t>(call[6]));
        if (!read(n.data(), 4 * n.size()))
            return 1;
        blockDim = {unsigned(call[3]), unsigned(call[4])};
        for (blockIdx.y = 0; blockIdx.y < unsigned(call[2]); blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < unsigned(call[1]); blockIdx.x++)
                for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                    for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
                        switch (call[0]) {
                        case 0:
                            rgb_to_planes(b[0], n[0], n[1], n[2], n[3], n[4], n[5], n[6], b[1]);
                            break;
                        case 1:
                            nv12_to_planes(b[0], b[1], n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9],
                                           n[10], n[11], n[12], n[13], b[2]);
                            break;
                        case 2:
                            planes_to_rgb(b[0], n[0], n[1], n[2], n[3], n[4], b[1], n[5]);
                            break;
                        case 3:
                            planes_to_nv12(b[0], n[0], n[1], n[2], n[3], n[4], b[1], n[5], b[2], n[6], n[7], n[8],
                                           n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16]);
                            break;
                        default:
                            return 1;
                        }
        for (size_t i = 0; i < b.size(); i++)
            if (std::fwrite(b[i], 1, sizes[i], stdout) != sizes[i])
                return 1;
        std::fflush(stdout);
        for (uint8_t *memory : allocations)
            std::free(memory);
    }
    return 0;
}
