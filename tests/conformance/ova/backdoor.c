/*
 * VMware's backdoor, as a program within a virtual machine meets it: `in` on port 0x5658 answers, where elsewhere it is a fault.
 * Preloaded into the real vmware-rpctool, it turns that fault into the answers that ESX would give, so that the whole way from the
 * first boot to the hypervisor's guestinfo is run. The processor has to say that it is VMware's, too: in the program's text `cpuid`
 * is replaced by an instruction that is no instruction, and that fault is answered likewise.
 *
 * It knows GETVERSION and the message channel's seven requests (open, send size, send payload, receive size, receive payload,
 * receive status, close) at low bandwidth, and one conversation: `info-get NAME`, answered from the file NAME in the directory that
 * BACKDOOR names. Source: open-vm-tools, lib/include/backdoor_def.h, lib/message/message.c and lib/include/guest_msg_def.h.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { IN_EAX_DX = 0xed, MAGIC = 0x564d5868, PORT = 0x5658, GET_VERSION = 10, MESSAGE = 30 };
enum { OPEN, SEND_SIZE, SEND_PAYLOAD, RECEIVE_SIZE, RECEIVE_PAYLOAD, RECEIVE_STATUS, CLOSE };
enum { SUCCESS = 0x0001, TO_RECEIVE = 0x0002 };
enum { LONGEST = 1 << 20, CHANNEL = 3 };

static const unsigned char CPUID[] = {0x0f, 0xa2}, UD2[] = {0x0f, 0x0b};
static char request[LONGEST], reply[LONGEST];
static size_t request_bytes, request_at, reply_bytes, reply_at;

/* The hypervisor's end: "1 VALUE", or "0 No value found". */
static void answer(void)
{
    const char *asked = "info-get ";
    char path[4096];
    int file = -1;
    ssize_t bytes = -1;
    request[request_at] = 0;
    if (strncmp(request, asked, strlen(asked)) == 0 && !strchr(request, '/')) {
        if (snprintf(path, sizeof path, "%s/%s", getenv("BACKDOOR"), request + strlen(asked)) < (int)sizeof path)
            file = open(path, O_RDONLY);
    }
    if (file >= 0) {
        bytes = read(file, reply + 2, LONGEST - 2);
        close(file);
    }
    if (bytes >= 0) {
        memcpy(reply, "1 ", 2);
        reply_bytes = (size_t)bytes + 2;
    } else {
        strcpy(reply, "0 No value found");
        reply_bytes = strlen(reply);
    }
    reply_at = 0;
}

static void message(greg_t *registers)
{
    uint32_t type = (uint32_t)registers[REG_RCX] >> 16, value = (uint32_t)registers[REG_RBX], status = SUCCESS, next = 0;
    switch (type) {
    case OPEN:
        next = CHANNEL;
        registers[REG_RSI] = 0x11111111;
        registers[REG_RDI] = 0x22222222;
        break;
    case SEND_SIZE:
        request_bytes = value;
        request_at = 0;
        status = value < LONGEST ? SUCCESS : 0;
        if (value == 0)
            answer();
        break;
    case SEND_PAYLOAD:
        for (int i = 0; i < 4 && request_at < request_bytes; i++)
            request[request_at++] = (char)(value >> 8 * i);
        if (request_at == request_bytes)
            answer();
        break;
    case RECEIVE_SIZE:
        status = SUCCESS | (reply_bytes ? TO_RECEIVE : 0);
        registers[REG_RBX] = (greg_t)reply_bytes;
        next = SEND_SIZE;
        break;
    case RECEIVE_PAYLOAD:
        value = 0;
        for (int i = 0; i < 4 && reply_at < reply_bytes; i++)
            value |= (uint32_t)(unsigned char)reply[reply_at++] << 8 * i;
        registers[REG_RBX] = value;
        next = SEND_PAYLOAD;
        break;
    case RECEIVE_STATUS:
        reply_bytes = 0;
        break;
    case CLOSE:
        break;
    default:
        status = 0;
    }
    registers[REG_RCX] = (greg_t)(uint32_t)(status << 16 | (registers[REG_RCX] & 0xffff));
    registers[REG_RDX] = (greg_t)(uint32_t)(next << 16 | (registers[REG_RDX] & 0xffff));
}

static void cpuid(greg_t *registers)
{
    uint32_t leaf = (uint32_t)registers[REG_RAX], a = 0, b = 0, c = 0, d = 0;
    if (leaf == 0x40000000) {
        a = 0x40000010;
        memcpy(&b, "VMwa", 4);
        memcpy(&c, "reVM", 4);
        memcpy(&d, "ware", 4);
    } else if (leaf < 0x40000000 || leaf > 0x400000ff) {
        __cpuid_count(leaf, (uint32_t)registers[REG_RCX], a, b, c, d);
        /* There is a hypervisor. */
        c |= leaf == 1 ? 1u << 31 : 0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
}

static void trap(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *instruction = (const unsigned char *)registers[REG_RIP];
    (void)info;
    if (number == SIGILL && memcmp(instruction, UD2, 2) == 0) {
        registers[REG_RIP] += 2;
        cpuid(registers);
    } else if (*instruction == IN_EAX_DX && (uint32_t)registers[REG_RAX] == MAGIC && (registers[REG_RDX] & 0xffff) == PORT) {
        registers[REG_RIP]++;
        switch (registers[REG_RCX] & 0xffff) {
        case GET_VERSION:
            registers[REG_RAX] = 6;
            registers[REG_RBX] = MAGIC;
            registers[REG_RCX] = 2; /* ESX */
            break;
        case MESSAGE:
            message(registers);
            break;
        default:
            registers[REG_RAX] = (greg_t)UINT32_MAX;
        }
    } else {
        /* A fault like any other. */
        signal(number, SIG_DFL);
    }
}

/* Whoever tries the backdoor out waits for the faults that are ours. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old)
{
    static int (*real)(int, const struct sigaction *, struct sigaction *);
    int ours = number == SIGSEGV || number == SIGILL;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sigaction");
    return real(number, ours && action && action->sa_sigaction != trap ? NULL : action, old);
}

/* The first object is the program. */
static int replace_cpuid(struct dl_phdr_info *info, size_t size, void *nothing)
{
    (void)size, (void)nothing;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        unsigned char *text = (unsigned char *)(info->dlpi_addr + part->p_vaddr);
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X))
            continue;
        uintptr_t page = (uintptr_t)text & ~(uintptr_t)4095;
        size_t bytes = part->p_memsz + ((uintptr_t)text - page);
        mprotect((void *)page, bytes, PROT_READ | PROT_WRITE | PROT_EXEC);
        for (size_t at = 0; at + 2 <= part->p_memsz; at++)
            if (memcmp(text + at, CPUID, 2) == 0)
                memcpy(text + at, UD2, 2);
        mprotect((void *)page, bytes, PROT_READ | PROT_EXEC);
    }
    return 1;
}

__attribute__((constructor)) static void begin(void)
{
    /* Whoever starts it is not meant: the two bytes may mean something else in a larger program. */
    if (strcmp(program_invocation_short_name, "vmware-rpctool") != 0)
        return;
    struct sigaction action = {.sa_sigaction = trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    dl_iterate_phdr(replace_cpuid, NULL);
}
