/* Preload this and the process sees a processor with AVX2, without VNNI, AVX-512 and AMX.
 *
 *   cc -shared -fPIC -O1 -o avx2_only.so avx2_only.c && LD_PRELOAD=$PWD/avx2_only.so python ...
 *
 * Linux can make the instruction CPUID fault (arch_prctl(ARCH_SET_CPUID), since 4.12, on processors and virtual machines
 * with "cpuid_fault" in /proc/cpuinfo). The handler below executes it, clears bits of the answer, and goes on behind it.
 * Libraries that choose their kernels by CPUID, as ONNX Runtime does, then take those for AVX2. Nothing is slower, for
 * they ask once. It ends the process with status 77 where CPUID cannot be made to fault.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012, ALLOWED = 1, FAULTS = 0 };

/* Leaf 7 of Intel's manual, volume 2A, CPUID. Subleaf 0: */
static const unsigned EBX_AVX512 = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned ECX_AVX512 = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14; /* with AVX512_VNNI, bit 11 */
static const unsigned EDX_AVX512_AMX = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
/* Subleaf 1: AVX_VNNI, AVX512_BF16, AMX_FP16, AVX_IFMA; and AVX_VNNI_INT8, AVX_NE_CONVERT, AVX_VNNI_INT16, AVX10. */
static const unsigned EAX_1 = 1u << 4 | 1u << 5 | 1u << 21 | 1u << 23;
static const unsigned EDX_1 = 1u << 4 | 1u << 5 | 1u << 10 | 1u << 19;

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)registers[REG_RIP];
    (void)info;
    if (at[0] != 0x0f || at[1] != 0xa2) { /* not CPUID: a real fault, which repeats without this handler */
        signal(number, SIG_DFL);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, ALLOWED);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS);
    if (leaf == 7 && subleaf == 0) {
        b &= ~EBX_AVX512;
        c &= ~ECX_AVX512;
        d &= ~EDX_AVX512_AMX;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~EAX_1;
        d &= ~EDX_1;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, 0);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, FAULTS)) /* threads inherit it, and so do forks; exec starts anew */
        _exit(77);
}
