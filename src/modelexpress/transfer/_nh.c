/* Host implementation of the chunk digest "nh128-p61/1"; docs/digest.md defines it and states its bound.
 *
 * Level 1 hashes each line of 1024 bytes with NH over 64-bit words (Black, Halevi, Krawczyk, Krovetz,
 * Rogaway: "UMAC: fast and secure message authentication", CRYPTO 1999). Level 2 is a multilinear function
 * modulo 2^61 - 1 of all line hashes and of the length (Carter and Wegman: "Universal classes of hash
 * functions", 1979).
 *
 * digest.py has checked addresses and lengths before it calls in here; this file checks only what could make
 * it read or write outside the arrays that it was handed. Nothing outlives a call: there is no global state.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define ALGORITHM "nh128-p61/1"
#define SEED UINT64_C(0x243F6A8885A308D3)
#define STEP UINT64_C(0x9E3779B97F4A7C15)
#define PRIME ((UINT64_C(1) << 61) - 1)

enum {
    LINE_BYTES = 1024,
    LINE_WORDS = LINE_BYTES / 8,
    LENGTH_KEY = LINE_WORDS,        /* keys before it belong to level 1, keys after it to line hashes */
    COPY_PIECE_BYTES = 128 * 1024,  /* this piece and the next stay in the core's own cache: measured */
    CACHE_LINE_BYTES = 64,
    PAGE_BYTES = 4096,              /* the smallest page; larger ones are touched more often than needed */
};

__extension__ typedef unsigned __int128 uint128;

/* ---- keys --------------------------------------------------------------------------------------------- */

/* Output `index` of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA
 * 2014), which needs none of the outputs before it. */
static inline uint64_t key_at(uint64_t index)
{
    uint64_t z = SEED + (index + 1) * STEP;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* A number congruent to the key modulo PRIME and below 2^61 + 8; finish() does the last subtraction. */
static inline uint64_t key_modulo_prime(uint64_t index)
{
    uint64_t key = key_at(index);
    return (key & PRIME) + (key >> 61);
}

static void fill_line_keys(uint64_t keys[LINE_WORDS])
{
    for (int i = 0; i < LINE_WORDS; i++)
        keys[i] = key_at((uint64_t)i);
}

/* ---- the digest --------------------------------------------------------------------------------------- */

typedef struct {
    const uint64_t *line_keys;
    uint128 sum;        /* congruent to the level 2 sum so far; below 2^68 between lines */
    uint64_t next_key;  /* index of the key of the next line's lowest 32 bits */
} Running;

static inline uint64_t load_word(const unsigned char *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);  /* addresses need not be aligned */
    return word;
}

static inline uint128 pair_product(const unsigned char *bytes, const uint64_t *keys)
{
    return (uint128)(load_word(bytes) + keys[0]) * (load_word(bytes + 8) + keys[1]);
}

/* Level 1. Four sums, so that no addition waits for the carry of the one before it. */
static inline uint128 line_hash(const unsigned char *line, const uint64_t *keys)
{
    uint128 sums[4] = {0, 0, 0, 0};
    for (int i = 0; i < LINE_WORDS; i += 8)
        for (int j = 0; j < 4; j++)
            sums[j] += pair_product(line + 8 * (i + 2 * j), keys + i + 2 * j);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* Level 2 of one line: four products below 2^94, so that `sum` stays below 2^97 until it is folded. */
static inline void add_line(Running *running, const unsigned char *line)
{
    uint128 hash = line_hash(line, running->line_keys);
    uint128 sum = running->sum;
    for (int j = 0; j < 4; j++)
        sum += (uint128)(uint32_t)(hash >> (32 * j)) * key_modulo_prime(running->next_key + (uint64_t)j);
    running->sum = (sum & PRIME) + (sum >> 61);
    running->next_key += 4;
}

/* Adds bytes that start a line of the chunk; only the last call of a chunk may end inside a line. */
static void add_bytes(Running *running, const unsigned char *bytes, uint64_t length)
{
    for (; length >= LINE_BYTES; bytes += LINE_BYTES, length -= LINE_BYTES)
        add_line(running, bytes);
    if (length > 0) {
        unsigned char padded[LINE_BYTES] = {0};
        memcpy(padded, bytes, length);
        add_line(running, padded);
    }
}

static inline uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static Running start(const uint64_t *line_keys)
{
    return (Running){.line_keys = line_keys, .sum = 0, .next_key = LENGTH_KEY + 1};
}

static uint64_t finish(const Running *running, uint64_t length)
{
    return (uint64_t)((running->sum + (uint128)length * key_modulo_prime(LENGTH_KEY)) % PRIME);
}

static uint64_t digest_range(const uint64_t *line_keys, const unsigned char *bytes, uint64_t length)
{
    Running running = start(line_keys);
    add_bytes(&running, bytes, length);
    return finish(&running, length);
}

/* Asks for a line that the next memcpy will need. Memory is then busy while this core multiplies, not in
 * turns with it: 12 GB/s instead of 9, where memcpy alone makes 15. Taking turns between source and
 * destination makes it 10 GB/s when both start at the same offset in a page. */
static inline void prefetch_line(const unsigned char *destination, const unsigned char *source)
{
    for (int i = 0; i < LINE_BYTES; i += CACHE_LINE_BYTES)
        __builtin_prefetch(source + i, 0, 2);
    for (int i = 0; i < LINE_BYTES; i += CACHE_LINE_BYTES)
        __builtin_prefetch(destination + i, 1, 2);
}

/* Makes the kernel map a page that the next memcpy will overwrite, because prefetching an unmapped page is
 * a slow way of doing nothing: on fresh pages 2.2 GB/s instead of 1.8, where memcpy alone makes 2.2. The byte
 * is the last of a line, as stores to the first delay loads at some alignments (10 instead of 12 GB/s). */
static inline void touch(unsigned char *byte)
{
    *(volatile unsigned char *)byte = 0;
}

/* Digests a piece that was just copied; `following` bytes of the range come after it. */
static void add_copied_piece(
    Running *running, unsigned char *destination, const unsigned char *source,
    uint64_t piece, uint64_t following)
{
    uint64_t whole_lines = piece - piece % LINE_BYTES;
    for (uint64_t at = 0; at < whole_lines; at += LINE_BYTES) {
        if (at + LINE_BYTES <= following) {
            if (at % PAGE_BYTES == 0)
                touch(destination + piece + at + LINE_BYTES - 1);
            prefetch_line(destination + piece + at, source + piece + at);
        }
        add_line(running, destination + at);
    }
    add_bytes(running, destination + whole_lines, piece - whole_lines);
}

/* Digests what arrived in the destination, not what left the source, while it is still in cache. */
static uint64_t copy_digest_range(
    const uint64_t *line_keys, unsigned char *destination, const unsigned char *source, uint64_t length)
{
    Running running = start(line_keys);
    for (uint64_t at = 0; at < length; at += COPY_PIECE_BYTES) {
        uint64_t piece = smaller(length - at, COPY_PIECE_BYTES);
        memcpy(destination + at, source + at, piece);
        add_copied_piece(&running, destination + at, source + at, piece, length - at - piece);
    }
    return finish(&running, length);
}

/* ---- Python ------------------------------------------------------------------------------------------- */

enum { MAXIMUM_COLUMNS = 4 };

static int is_uint64_column(const Py_buffer *view)
{
    const char *format = view->format != NULL ? view->format : "B";
    if (strchr("@=<", format[0]) != NULL && format[0] != '\0')
        format++;
    int is_unsigned = strcmp(format, "Q") == 0 || strcmp(format, "L") == 0;
    return view->ndim == 1 && view->itemsize == 8 && is_unsigned;
}

static unsigned char *bytes_at(uint64_t address)
{
    return (unsigned char *)(uintptr_t)address;
}

static void release_columns(Py_buffer *views, int count)
{
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&views[i]);
}

/* Takes uint64 columns of one length, the last of them to write to. Returns 0, or -1 with an error set. */
static int get_columns(PyObject *arguments, Py_buffer *views, int count)
{
    if (PyTuple_Size(arguments) != count) {
        PyErr_Format(PyExc_TypeError, "expected %d arrays", count);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        int flags = PyBUF_ND | PyBUF_FORMAT | (i == count - 1 ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(PyTuple_GetItem(arguments, i), &views[i], flags) < 0) {
            release_columns(views, i);
            return -1;
        }
        if (!is_uint64_column(&views[i]) || views[i].len != views[0].len) {
            PyErr_Format(PyExc_ValueError, "argument %d is not a uint64 array as long as the first", i + 1);
            release_columns(views, i + 1);
            return -1;
        }
    }
    return 0;
}

static PyObject *py_digest(PyObject *module, PyObject *data)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    uint64_t result;
    Py_BEGIN_ALLOW_THREADS
    uint64_t keys[LINE_WORDS];
    fill_line_keys(keys);
    result = digest_range(keys, view.buf, (uint64_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(result);
}

static PyObject *py_digest_many(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer views[MAXIMUM_COLUMNS];
    if (get_columns(arguments, views, 3) < 0)
        return NULL;
    const uint64_t *addresses = views[0].buf, *lengths = views[1].buf;
    uint64_t *digests = views[2].buf;
    Py_BEGIN_ALLOW_THREADS
    uint64_t keys[LINE_WORDS];
    fill_line_keys(keys);
    for (Py_ssize_t i = 0; i < views[0].len / 8; i++)
        digests[i] = digest_range(keys, bytes_at(addresses[i]), lengths[i]);
    Py_END_ALLOW_THREADS
    release_columns(views, 3);
    Py_RETURN_NONE;
}

static PyObject *py_copy_digest_many(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer views[MAXIMUM_COLUMNS];
    if (get_columns(arguments, views, 4) < 0)
        return NULL;
    const uint64_t *destinations = views[0].buf, *sources = views[1].buf, *lengths = views[2].buf;
    uint64_t *digests = views[3].buf;
    Py_BEGIN_ALLOW_THREADS
    uint64_t keys[LINE_WORDS];
    fill_line_keys(keys);
    for (Py_ssize_t i = 0; i < views[0].len / 8; i++)
        digests[i] = copy_digest_range(keys, bytes_at(destinations[i]), bytes_at(sources[i]), lengths[i]);
    Py_END_ALLOW_THREADS
    release_columns(views, 4);
    Py_RETURN_NONE;
}

static int execute(PyObject *module)
{
    const uint16_t probe = 1;
    if (*(const unsigned char *)&probe != 1) {
        PyErr_SetString(PyExc_ImportError, "the compiled digest needs a little-endian machine");
        return -1;
    }
    return PyModule_AddStringConstant(module, "ALGORITHM", ALGORITHM);
}

static PyMethodDef methods[] = {
    {"digest", py_digest, METH_O, "digest(data) -> int"},
    {"digest_many", py_digest_many, METH_VARARGS, "digest_many(addresses, lengths, digests) -> None"},
    {"copy_digest_many", py_copy_digest_many, METH_VARARGS,
     "copy_digest_many(destinations, sources, lengths, digests) -> None"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_nh",
    .m_doc = "The chunk digest nh128-p61/1 in C; use modelexpress.transfer.digest.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__nh(void)
{
    return PyModuleDef_Init(&definition);
}
