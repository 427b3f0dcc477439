// The newest thing that the libraries would ask of the system's C library, answered here instead.
//
// libstdc++ counts the owners of a shared pointer without atomics as long as the variable
// `__libc_single_threaded` of glibc 2.32 says that there is one thread. Ours always says no, which is
// safe everywhere, and a wheel loads wherever PyTorch's own does (glibc 2.28).
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
