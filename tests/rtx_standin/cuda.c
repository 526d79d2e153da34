/* A stand-in for NVIDIA's driver, libcuda.so.1: the functions that runner.py calls, on memory of the host.

   It is as strict as the driver allows to be, so that what passes here does not pass by luck: addresses are none of the
   host's, copies are held against what was allocated, nothing of a stream happens before it is waited for, a source
   is read when the copy is asked for and a target written when it is done, and a context that still holds memory is
   not released.

   CUDA_STANDIN_GPUS: compute capabilities of the GPUs, "89,120"; "" for none; CUDA_VISIBLE_DEVICES="" hides all.
   CUDA_STANDIN_FAIL: "cuMemAlloc_v2:2:3": the third call of the function gives 2, CUDA_ERROR_OUT_OF_MEMORY.
   CUDA_STANDIN_CRASH: the name of a function that ends the process by a signal.

   Its names and numbers are those of cuda.h. standin_* are for the stand-in of TensorRT for RTX. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAR ((uint64_t)1 << 60)
#define MOST 65536

enum { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, UNKNOWN = 999 };

typedef void (*Work)(void);
struct Block { uint64_t address; size_t size; };
struct Task { int kind; uint64_t device; void *host; size_t size; Work work; };

static struct Block blocks[MOST];
static struct Task tasks[MOST];
static int block_count, task_count, initialized, retained, current = -1;
static int stream_token, context_token[8];

static int called(const char *name) {
    static struct { const char *name; int count; } calls[64];
    const char *crash = getenv("CUDA_STANDIN_CRASH"), *fail = getenv("CUDA_STANDIN_FAIL");
    char text[128];
    int code, at, place = 0;
    if (crash != NULL && strcmp(crash, name) == 0) abort();
    while (calls[place].name != NULL && strcmp(calls[place].name, name) != 0) place++;
    calls[place].name = name;
    calls[place].count++;
    if (fail != NULL && sscanf(fail, "%127[^:]:%d:%d", text, &code, &at) == 3 && strcmp(text, name) == 0
        && calls[place].count == at)
        return code;
    return strcmp(name, "cuInit") != 0 && !initialized ? NOT_INITIALIZED : OK;
}

#define CALLED(name) do { int code = called(name); if (code != OK) return code; } while (0)

static int capability(int index) {
    const char *text = getenv("CUDA_STANDIN_GPUS"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    char copy[256];
    if (text == NULL || (visible != NULL && visible[0] == 0)) return 0;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok(copy, ","); word != NULL; word = strtok(NULL, ","), index--)
        if (index == 0) return atoi(word);
    return 0;
}

int cuInit(unsigned flags) {
    CALLED("cuInit");
    if (flags != 0) return INVALID_VALUE;
    if (capability(0) == 0) return NO_DEVICE;
    initialized = 1;
    return OK;
}

int cuDriverGetVersion(int *version) { CALLED("cuDriverGetVersion"); *version = 12080; return OK; }

int cuDeviceGetCount(int *count) {
    CALLED("cuDeviceGetCount");
    for (*count = 0; capability(*count) != 0; ) ++*count;
    return OK;
}

int cuDeviceGet(int *device, int index) {
    CALLED("cuDeviceGet");
    if (capability(index) == 0) return INVALID_DEVICE;
    *device = index;
    return OK;
}

int cuDeviceGetName(char *name, int size, int device) {
    CALLED("cuDeviceGetName");
    snprintf(name, (size_t)size, "Stand-in %d", device);
    return OK;
}

int cuDeviceGetAttribute(int *value, int which, int device) {
    CALLED("cuDeviceGetAttribute");
    if (which != 75 && which != 76) return INVALID_VALUE;
    *value = which == 75 ? capability(device) / 10 : capability(device) % 10;
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    CALLED("cuDevicePrimaryCtxRetain");
    retained++;
    *context = &context_token[device];
    return OK;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    CALLED("cuDevicePrimaryCtxRelease_v2");
    (void)device;
    if (retained == 0) return INVALID_CONTEXT;
    return block_count == 0 && task_count == 0 ? OK : UNKNOWN;
}

int cuCtxSetCurrent(void *context) {
    CALLED("cuCtxSetCurrent");
    if (retained == 0) return INVALID_CONTEXT;
    current = (int)((int *)context - context_token);
    return OK;
}

int cuStreamCreate(void **stream, unsigned flags) {
    CALLED("cuStreamCreate");
    if (current < 0) return INVALID_CONTEXT;
    if (flags > 1) return INVALID_VALUE;
    *stream = &stream_token;
    return OK;
}

int cuStreamDestroy_v2(void *stream) {
    CALLED("cuStreamDestroy_v2");
    return stream == &stream_token ? OK : INVALID_HANDLE;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    CALLED("cuMemAlloc_v2");
    if (current < 0) return INVALID_CONTEXT;
    if (size == 0 || block_count == MOST) return INVALID_VALUE;
    *address = FAR + (uint64_t)(uintptr_t)malloc(size);
    memset((void *)(uintptr_t)(*address - FAR), 0xA5, size);
    blocks[block_count++] = (struct Block){*address, size};
    return OK;
}

int cuMemFree_v2(uint64_t address) {
    CALLED("cuMemFree_v2");
    for (int place = 0; place < block_count; place++)
        if (blocks[place].address == address) {
            if (task_count > 0) return UNKNOWN; /* the stream may still use it */
            free((void *)(uintptr_t)(address - FAR));
            blocks[place] = blocks[--block_count];
            return OK;
        }
    return INVALID_VALUE;
}

static void *host(uint64_t address, size_t size) {
    for (int place = 0; place < block_count; place++)
        if (address >= blocks[place].address && address + size <= blocks[place].address + blocks[place].size)
            return (void *)(uintptr_t)(address - FAR);
    return NULL;
}

static int put(void *stream, struct Task task) {
    if (stream != &stream_token) return INVALID_HANDLE;
    if (task_count == MOST || (task.work == NULL && host(task.device, task.size) == NULL)) return INVALID_VALUE;
    tasks[task_count++] = task;
    return OK;
}

int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, void *stream) {
    CALLED("cuMemcpyHtoDAsync_v2");
    void *staged = malloc(size);
    memcpy(staged, source, size);
    return put(stream, (struct Task){0, target, staged, size, NULL});
}

int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, void *stream) {
    CALLED("cuMemcpyDtoHAsync_v2");
    return put(stream, (struct Task){1, source, target, size, NULL});
}

int cuStreamSynchronize(void *stream) {
    CALLED("cuStreamSynchronize");
    if (stream != &stream_token) return INVALID_HANDLE;
    for (int place = 0; place < task_count; place++) {
        struct Task *task = &tasks[place];
        if (task->kind == 0) { memcpy(host(task->device, task->size), task->host, task->size); free(task->host); }
        if (task->kind == 1) memcpy(task->host, host(task->device, task->size), task->size);
        if (task->kind == 2) task->work();
    }
    task_count = 0;
    return OK;
}

int cuGetErrorName(int code, const char **text) {
    *text = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"
          : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_UNKNOWN";
    return OK;
}

int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "unknown error"; return OK; }

int standin_capability(void) { return current < 0 ? 0 : capability(current); }

int standin_enqueue(void *stream, Work work) { return put(stream, (struct Task){2, 0, NULL, 0, work}); }

int standin_read(void *target, uint64_t source, size_t size) {
    void *found = host(source, size);
    if (found != NULL) memcpy(target, found, size);
    return found != NULL ? OK : INVALID_VALUE;
}

int standin_write(uint64_t target, const void *source, size_t size) {
    void *found = host(target, size);
    if (found != NULL) memcpy(found, source, size);
    return found != NULL ? OK : INVALID_VALUE;
}
