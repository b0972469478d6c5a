/* A stand-in for a camera: writes N raw RGB frames to stdout, for record_raw.py.
 *
 *     cc -O2 -o frames frames.c && ./frames 640x480 100 | python record_raw.py 640x480 OUT.lnt
 *
 * In firmware the loop's body is: wait for the sensor, fwrite the frame. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    unsigned width, height, count;
    if (argc != 3 || sscanf(argv[1], "%ux%u", &width, &height) != 2 || sscanf(argv[2], "%u", &count) != 1 || !width ||
        !height || width > 1u << 20 || height > 1u << 20) {
        fprintf(stderr, "usage: frames WxH N\n");
        return 2;
    }
    unsigned char *row = malloc(3 * (size_t)width);
    if (!row)
        return 3;
    for (unsigned frame = 0; frame < count; frame++)
        for (unsigned y = 0; y < height; y++) {
            for (unsigned x = 0; x < width; x++) {
                row[3 * x] = (unsigned char)(x + 4 * frame);
                row[3 * x + 1] = (unsigned char)y;
                row[3 * x + 2] = (unsigned char)(x ^ y);
            }
            if (fwrite(row, 3, width, stdout) != width)
                return 1; /* the recorder is gone */
        }
    free(row);
    return fflush(stdout) ? 1 : 0;
}
