/* A stand-in for NVIDIA's libnvidia-ml.so.1: the few functions that are asked, with made-up cards behind them.

   NVIDIA_DOUBLE says what happens: "fine" (an RTX 4090 and an A100 under MIG), "lost" (the first card has fallen off
   the bus), "undivided" (MIG without parts), "dumb" (cards that answer nothing but their name), "crash", "hang",
   "chatty" (prints to standard output), "none" (no driver). The types are those of NVIDIA's nvml.h. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_t;
typedef struct { const char *name, *uuid, *bus_id; unsigned long long total_mib, used_mib; int mig; } device_t;

static device_t devices[] = {
    {"NVIDIA GeForce RTX 4090", "GPU-0", "00000000:01:00.0", 24564, 1021, 0},
    {"NVIDIA A100-SXM4-80GB", "GPU-1", "00000000:41:00.0", 81920, 87, 1},
};
static device_t parts[] = {
    {"NVIDIA A100-SXM4-80GB MIG 3g.40gb", "MIG-10", "", 40192, 0, 0},
    {"NVIDIA A100-SXM4-80GB MIG 1g.10gb", "MIG-11", "", 9728, 0, 0},
};

static int is(const char *word) {
    const char *wanted = getenv("NVIDIA_DOUBLE");
    return wanted != NULL && strcmp(wanted, word) == 0;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    if (is("crash")) abort();
    if (is("hang")) for (;;) pause();
    if (is("chatty")) { puts("[{\"vendor\":1}]"); fflush(stdout); }
    return is("none") ? DRIVER_NOT_LOADED : SUCCESS;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { (void)code; return "an error of the double"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "550.54.14");
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device) {
    if (index > 1) return INVALID_ARGUMENT;
    if (index == 0 && is("lost")) return GPU_IS_LOST;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetName(device_t *device, char *name, unsigned int length) {
    snprintf(name, length, "%s", device->name);
    return SUCCESS;
}

int nvmlDeviceGetUUID(device_t *device, char *uuid, unsigned int length) {
    if (is("dumb")) return NOT_SUPPORTED;
    snprintf(uuid, length, "%s", device->uuid);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) {
    if (is("dumb")) return NOT_SUPPORTED;
    memory->total = device->total_mib << 20;
    memory->used = device->used_mib << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *utilization) {
    if (is("dumb") || device->mig) return NOT_SUPPORTED;
    utilization->gpu = 37;
    utilization->memory = 5;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device_t *device, unsigned int sensor, unsigned int *celsius) {
    (void)device;
    if (is("dumb") || sensor != 0) return NOT_SUPPORTED;
    *celsius = 56;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device_t *device, unsigned int *milliwatts) {
    (void)device;
    if (is("dumb")) return NOT_SUPPORTED;
    *milliwatts = 228820;
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *pci) {
    if (is("dumb")) return NOT_SUPPORTED;
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", device->bus_id);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device_t *device, unsigned int *now, unsigned int *later) {
    if (is("dumb") || !device->mig) return NOT_SUPPORTED;
    *now = *later = 1;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, unsigned int *count) {
    (void)device;
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, unsigned int index, device_t **part) {
    /* Places may be empty: the second part is in the third place. */
    if (!device->mig || is("undivided") || (index != 0 && index != 2)) return NOT_FOUND;
    *part = &parts[index / 2];
    return SUCCESS;
}
