/* The allocator of a CudaArena: torch calls it in the middle of an allocation, holding a lock of its own, so it must
 * not wait for the interpreter. It hands out one reserved range of addresses from the beginning, and puts physical
 * memory behind it as that grows. cuda_arena.py does everything else, and says what is reserved for whom.
 *
 * Signatures of the driver's functions are those of the CUDA driver API reference, "Virtual Memory Management". The
 * structures that two of them take are filled by cuda_vmm.py and arrive as bytes. libcuda is loaded when the first
 * arena is opened: this module is built and imported on machines without it.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT = 512,          /* what torch expects of cudaMalloc */
    PROPERTIES_BYTES = 32,    /* CUmemAllocationProp */
    ACCESS_BYTES = 12,        /* CUmemAccessDesc */
    FIRST_PARTS = 64,
};

typedef struct Arena {
    struct Arena *next;
    uint64_t name;         /* what Python calls it; never used again */
    uint64_t base;         /* of the reserved range */
    size_t reserved;
    size_t mapped;         /* bytes from the base with memory behind them */
    size_t used;           /* bytes from the base that were handed out */
    size_t live;           /* of those, the bytes that have not come back */
    size_t granularity;
    size_t step, most;     /* size of the next physical allocation, and of the largest */
    size_t *parts;         /* bytes of each physical allocation, side by side from the base */
    size_t count, room;
    int device;
    int closing;           /* to be given back with the last byte that is live */
    int status;            /* CUresult of the last call that failed */
    void *context;
    uint64_t properties[PROPERTIES_BYTES / sizeof(uint64_t)];
    uint32_t access[ACCESS_BYTES / sizeof(uint32_t)];
} Arena;

static struct {
    int (*create)(uint64_t *handle, size_t size, const void *properties, unsigned long long flags);
    int (*release)(uint64_t handle);
    int (*map)(uint64_t address, size_t size, size_t offset, uint64_t handle, unsigned long long flags);
    int (*unmap)(uint64_t address, size_t size);
    int (*allow)(uint64_t address, size_t size, const void *access, size_t count);
    int (*free_addresses)(uint64_t address, size_t size);
    int (*push)(void *context);
    int (*pop)(void **context);
    int (*synchronise)(void);
} cuda;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t names;
static Arena *arenas;                /* guarded by the lock, as are the names and the arenas themselves */
static __thread Arena *current;      /* that of this thread, while it is in the arena's block */

/* ---- physical memory ------------------------------------------------------------------------------------ */

static size_t rounded(size_t size, size_t unit)
{
    return (size + unit - 1) / unit * unit;
}

static int has_room_for_part(Arena *arena)
{
    if (arena->count < arena->room)
        return 1;
    size_t room = arena->room ? 2 * arena->room : FIRST_PARTS;
    size_t *parts = realloc(arena->parts, room * sizeof *parts);
    if (parts == NULL)
        return 0;
    arena->parts = parts;
    arena->room = room;
    return 1;
}

/* Puts one more physical allocation behind the range. Returns a CUresult. */
static int add_part(Arena *arena, size_t size)
{
    uint64_t handle, address = arena->base + arena->mapped;
    int status = cuda.create(&handle, size, arena->properties, 0);
    if (status != 0)
        return status;
    status = cuda.map(address, size, 0, handle, 0);
    cuda.release(handle);  /* the mapping keeps the memory */
    if (status != 0)
        return status;
    status = cuda.allow(address, size, arena->access, 1);
    if (status != 0) {
        cuda.unmap(address, size);
        return status;
    }
    arena->parts[arena->count++] = size;
    arena->mapped += size;
    return 0;
}

/* Returns whether at least `needed` more bytes have memory behind them now. */
static int grow(Arena *arena, size_t needed)
{
    size_t left = arena->reserved - arena->mapped;
    size_t least = rounded(needed, arena->granularity);
    size_t wanted = least > arena->step ? least : arena->step;
    if (least > left || !has_room_for_part(arena))
        return 0;
    if (wanted > left)
        wanted = left;
    int status = add_part(arena, wanted);
    if (status != 0 && wanted > least)
        status = add_part(arena, least);  /* the device is nearly full */
    if (status != 0) {
        arena->status = status;
        return 0;
    }
    arena->step = 2 * arena->step < arena->most ? 2 * arena->step : arena->most;
    return 1;
}

/* Gives everything back and forgets the arena. The caller holds the lock. */
static void give_back(Arena *arena)
{
    /* Unmapping does not wait for what the device still does with the memory. */
    if (cuda.push(arena->context) == 0) {
        void *ignored;
        cuda.synchronise();
        cuda.pop(&ignored);
    }
    uint64_t address = arena->base;
    for (size_t i = 0; i < arena->count; i++) {
        cuda.unmap(address, arena->parts[i]);
        address += arena->parts[i];
    }
    cuda.free_addresses(arena->base, arena->reserved);
    for (Arena **link = &arenas; *link != NULL; link = &(*link)->next)
        if (*link == arena) {
            *link = arena->next;
            break;
        }
    free(arena->parts);
    free(arena);
}

/* ---- what torch calls ----------------------------------------------------------------------------------- */

__attribute__((visibility("default"))) void *mx_arena_malloc(size_t size, int device, void *stream)
{
    (void)stream;
    Arena *arena = current;
    if (arena == NULL || arena->device != device || size == 0 || size > arena->reserved)
        return NULL;
    void *found = NULL;
    size = rounded(size, ALIGNMENT);
    pthread_mutex_lock(&lock);
    if (size <= arena->reserved - arena->used) {
        size_t end = arena->used + size;
        if (end <= arena->mapped || grow(arena, end - arena->mapped)) {
            found = (void *)(uintptr_t)(arena->base + arena->used);
            arena->used = end;
            arena->live += size;
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

__attribute__((visibility("default"))) void mx_arena_free(void *pointer, size_t size, int device, void *stream)
{
    (void)device;
    (void)stream;
    uint64_t address = (uint64_t)(uintptr_t)pointer;
    size = rounded(size, ALIGNMENT);
    pthread_mutex_lock(&lock);
    for (Arena *arena = arenas; arena != NULL; arena = arena->next) {
        if (address < arena->base || address >= arena->base + arena->used)
            continue;
        arena->live -= size;
        if (address + size == arena->base + arena->used)
            arena->used -= size;
        if (arena->closing && arena->live == 0)
            give_back(arena);
        break;
    }
    pthread_mutex_unlock(&lock);
}

/* ---- Python --------------------------------------------------------------------------------------------- */

static int load(void)
{
    if (cuda.create != NULL)
        return 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    struct { void **place; const char *name; } functions[] = {
        {(void **)&cuda.release, "cuMemRelease"},
        {(void **)&cuda.map, "cuMemMap"},
        {(void **)&cuda.unmap, "cuMemUnmap"},
        {(void **)&cuda.allow, "cuMemSetAccess"},
        {(void **)&cuda.free_addresses, "cuMemAddressFree"},
        {(void **)&cuda.push, "cuCtxPushCurrent_v2"},
        {(void **)&cuda.pop, "cuCtxPopCurrent_v2"},
        {(void **)&cuda.synchronise, "cuCtxSynchronize"},
        {(void **)&cuda.create, "cuMemCreate"},  /* last: says that all are there */
    };
    for (size_t i = 0; library != NULL && i < sizeof functions / sizeof *functions; i++)
        if ((*functions[i].place = dlsym(library, functions[i].name)) == NULL)
            break;
    if (cuda.create == NULL) {
        PyErr_SetString(PyExc_OSError, "libcuda.so.1 is missing, or lacks virtual memory management");
        return -1;
    }
    return 0;
}

/* Returns the arena of a name, with the lock held; NULL, without the lock, where there is none. */
static Arena *locked(unsigned long long name)
{
    pthread_mutex_lock(&lock);
    for (Arena *arena = arenas; arena != NULL; arena = arena->next)
        if (arena->name == name)
            return arena;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static Arena *locked_or_error(PyObject *name)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(name);
    if (PyErr_Occurred() != NULL)
        return NULL;
    Arena *arena = locked(number);
    if (arena == NULL)
        PyErr_SetString(PyExc_ValueError, "there is no such arena, or it was given back");
    return arena;
}

static PyObject *py_open(PyObject *module, PyObject *arguments)
{
    (void)module;
    unsigned long long base, reserved, context, granularity, step, most;
    const char *properties, *access;
    Py_ssize_t properties_bytes, access_bytes;
    int device;
    if (!PyArg_ParseTuple(arguments, "KKiKKKKy#y#", &base, &reserved, &device, &context, &granularity, &step, &most,
                          &properties, &properties_bytes, &access, &access_bytes))
        return NULL;
    if (properties_bytes != PROPERTIES_BYTES || access_bytes != ACCESS_BYTES || granularity == 0) {
        PyErr_SetString(PyExc_ValueError, "the structures of the driver have other sizes");
        return NULL;
    }
    if (load() < 0)
        return NULL;
    Arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL)
        return PyErr_NoMemory();
    arena->base = base;
    arena->reserved = reserved;
    arena->granularity = granularity;
    arena->step = step;
    arena->most = most;
    arena->device = device;
    arena->context = (void *)(uintptr_t)context;
    memcpy(arena->properties, properties, PROPERTIES_BYTES);
    memcpy(arena->access, access, ACCESS_BYTES);
    pthread_mutex_lock(&lock);
    unsigned long long name = arena->name = ++names;
    arena->next = arenas;
    arenas = arena;
    pthread_mutex_unlock(&lock);
    return PyLong_FromUnsignedLongLong(name);
}

static PyObject *py_enter(PyObject *module, PyObject *name)
{
    (void)module;
    Arena *arena = locked_or_error(name);
    if (arena == NULL)
        return NULL;
    current = arena;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *py_leave(PyObject *module, PyObject *ignored)
{
    (void)module;
    (void)ignored;
    current = NULL;
    Py_RETURN_NONE;
}

static PyObject *py_state(PyObject *module, PyObject *name)
{
    (void)module;
    Arena *arena = locked_or_error(name);
    if (arena == NULL)
        return NULL;
    unsigned long long mapped = arena->mapped, used = arena->used, live = arena->live;
    int status = arena->status;
    pthread_mutex_unlock(&lock);
    return Py_BuildValue("KKKi", mapped, used, live, status);
}

static PyObject *py_parts(PyObject *module, PyObject *name)
{
    (void)module;
    Arena *arena = locked_or_error(name);
    if (arena == NULL)
        return NULL;
    /* Making objects may run other code of Python, which may free: not with the lock held. */
    size_t count = arena->count;
    size_t *copy = malloc((count + 1) * sizeof *copy);
    if (copy != NULL && count > 0)
        memcpy(copy, arena->parts, count * sizeof *copy);
    pthread_mutex_unlock(&lock);
    PyObject *list = copy != NULL ? PyList_New((Py_ssize_t)count) : PyErr_NoMemory();
    for (size_t i = 0; list != NULL && i < count; i++)
        PyList_SetItem(list, (Py_ssize_t)i, PyLong_FromSize_t(copy[i]));
    free(copy);
    return list;
}

static PyObject *py_shrink(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *name;
    unsigned long long size;
    if (!PyArg_ParseTuple(arguments, "OK", &name, &size))
        return NULL;
    Arena *arena = locked_or_error(name);
    if (arena == NULL)
        return NULL;
    int fits = arena->count > 0 && size <= arena->parts[arena->count - 1];
    if (fits) {
        arena->mapped -= arena->parts[arena->count - 1] - size;
        arena->parts[arena->count - 1] = size;
        arena->count -= size == 0;
    }
    pthread_mutex_unlock(&lock);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the last part is smaller than that");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_close(PyObject *module, PyObject *name)
{
    (void)module;
    unsigned long long number = PyLong_AsUnsignedLongLong(name);
    if (PyErr_Occurred() != NULL)
        return NULL;
    int gone = 1;
    Py_BEGIN_ALLOW_THREADS
    Arena *arena = locked(number);
    if (arena != NULL) {
        arena->closing = 1;
        gone = arena->live == 0;
        if (gone)
            give_back(arena);
        pthread_mutex_unlock(&lock);
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(gone);
}

static PyMethodDef methods[] = {
    {"open", py_open, METH_VARARGS,
     "open(base, reserved, device, context, granularity, step, most, properties, access) -> int"},
    {"enter", py_enter, METH_O, "enter(arena): this thread's allocations come from it, until leave()"},
    {"leave", py_leave, METH_NOARGS, "leave()"},
    {"state", py_state, METH_O, "state(arena) -> (mapped, used, live, status)"},
    {"parts", py_parts, METH_O, "parts(arena) -> bytes of each physical allocation"},
    {"shrink", py_shrink, METH_VARARGS, "shrink(arena, nbytes): the last part has so many bytes now, or is gone"},
    {"close", py_close, METH_O, "close(arena) -> whether it was given back; else that follows with its last byte"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_arena",
    .m_doc = "The allocator of modelexpress.memory.cuda_arena.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__arena(void)
{
    return PyModuleDef_Init(&definition);
}
