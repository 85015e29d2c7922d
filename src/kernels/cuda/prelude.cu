// The common beginning of every kernel file, compiled before it by nvrtc, or by g++ after emulate.h. `-DREAL=float` or
// `-DREAL=double` chooses the element type.

typedef REAL real;

// All lanes of a warp.
#define ALL 0xffffffffu

// Declares the dynamic shared memory of the launch as a pointer to `type`, aligned to 16 bytes.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name)                                 \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = (type*)dynamic_shared
#endif

// Four neighbouring elements, loaded and stored as one vector (float) or two (double) where the address is a multiple of 16.
template <class T> struct __align__(16) Four {
    T x, y, z, w;
};
typedef Four<real> real4;

// Functions of one element, in the precision of the element type.
static __device__ __forceinline__ float exp_real(float x) { return expf(x); }
static __device__ __forceinline__ double exp_real(double x) { return exp(x); }
static __device__ __forceinline__ float log_real(float x) { return logf(x); }
static __device__ __forceinline__ double log_real(double x) { return log(x); }
static __device__ __forceinline__ float log1p_real(float x) { return log1pf(x); }
static __device__ __forceinline__ double log1p_real(double x) { return log1p(x); }
static __device__ __forceinline__ float tanh_real(float x) { return tanhf(x); }
static __device__ __forceinline__ double tanh_real(double x) { return tanh(x); }
static __device__ __forceinline__ float sqrt_real(float x) { return sqrtf(x); }
static __device__ __forceinline__ double sqrt_real(double x) { return sqrt(x); }
static __device__ __forceinline__ float fma_real(float a, float b, float c) { return fmaf(a, b, c); }
static __device__ __forceinline__ double fma_real(double a, double b, double c) { return fma(a, b, c); }
static __device__ __forceinline__ real sigmoid(real x) { return (real)1 / ((real)1 + exp_real(-x)); }
static __device__ __forceinline__ real infinity() { return (real)__int_as_float(0x7f800000); }
static __device__ __forceinline__ real not_a_number() { return (real)__int_as_float(0x7fffffff); }

// max(x, 0), which keeps NaN.
static __device__ __forceinline__ real relu_real(real x) { return x < (real)0 ? (real)0 : x; }

// Of two elements the larger one; NaN if one of them is NaN.
static __device__ __forceinline__ real max_real(real a, real b) { return a > b || a != a ? a : b; }

// Index of the thread in its block, and number of threads of the block.
static __device__ __forceinline__ int thread_index() {
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}
static __device__ __forceinline__ int block_size() { return blockDim.x * blockDim.y * blockDim.z; }

// Index of the thread in a grid of one dimension.
static __device__ __forceinline__ long long grid_index() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// Reductions. All threads of the warp or block take part and get the result. The order is fixed.

static __device__ __forceinline__ real warp_sum(real x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(ALL, x, lane);
    return x;
}

static __device__ __forceinline__ real warp_max(real x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = max_real(x, __shfl_xor_sync(ALL, x, lane));
    return x;
}

// The block has a multiple of 32 threads. N sums at once share the two barriers.
template <int N> static __device__ __forceinline__ void block_sums(real (&sums)[N]) {
    __shared__ real parts[N][32];
    int thread = thread_index(), warps = block_size() / 32;
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] = warp_sum(sums[i]);
    __syncthreads();
    if (thread % 32 == 0)
#pragma unroll
        for (int i = 0; i < N; i++) parts[i][thread / 32] = sums[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] = warp_sum(thread % 32 < warps ? parts[i][thread % 32] : (real)0);
}

static __device__ __forceinline__ real block_sum(real x) {
    real sums[1] = {x};
    block_sums(sums);
    return sums[0];
}

static __device__ __forceinline__ real block_max(real x) {
    __shared__ real parts[32];
    int thread = thread_index(), warps = block_size() / 32;
    x = warp_max(x);
    __syncthreads();
    if (thread % 32 == 0) parts[thread / 32] = x;
    __syncthreads();
    return warp_max(thread % 32 < warps ? parts[thread % 32] : -infinity());
}

// The sum of `x` over the threads of the block before this one, and in `total` over all of them.
static __device__ __forceinline__ int sum_before(int x, int* total) {
    __shared__ int sums[32];
    int thread = thread_index(), warps = block_size() / 32, sum = x;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(ALL, sum, step);
        if (thread % 32 >= step) sum += other;
    }
    __syncthreads();
    if (thread % 32 == 31) sums[thread / 32] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int i = 0; i < warps; i++) {
        if (i == thread / 32) before = all;
        all += sums[i];
    }
    *total = all;
    return before + sum - x;
}
