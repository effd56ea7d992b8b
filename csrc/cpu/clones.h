// How one build runs at each machine's own vector width.
#pragma once

// Which clone runs is decided once, at load time. What a loop calls must be inlined into it (GROK_HD): it
// would else be compiled for the baseline machine, and the loop around it would not vectorise.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(GROK_NO_CLONES)
#define GROK_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GROK_CPU_CLONES
#endif
