// The texts of the pinned error numbers.
#include "linnet.h"

uint32_t linnet_api_version(void)
{
    return LINNET_API_VERSION;
}

const char *linnet_strerror(int error)
{
    switch (error) {
    case LINNET_OK: return "no error";
    case LINNET_ERROR_ARGUMENT: return "an argument is outside its documented range";
    case LINNET_ERROR_MEMORY: return "out of memory";
    case LINNET_ERROR_CAPACITY: return "the output buffer is too small";
    case LINNET_ERROR_TABLES: return "the entropy tables are malformed";
    case LINNET_ERROR_SYMBOL: return "a symbol cannot be coded with its entropy table";
    case LINNET_ERROR_TRUNCATED: return "the entropy-coded data ends too early";
    case LINNET_ERROR_CORRUPT: return "the entropy-coded data is damaged";
    default: return "unknown error number";
    }
}
