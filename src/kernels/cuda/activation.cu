// Activation functions and their gradients, element by element. A thread computes four neighbouring elements, loaded and
// stored as one vector where all arrays are aligned. Blocks of 256 threads, grid ceil(n / 1024).

static __device__ __forceinline__ bool aligned(const void* p) { return (unsigned long long)p % sizeof(real4) == 0; }

template <class F> static __device__ __forceinline__ void map(const real* a, const real* b, real* y, long long n, F f) {
    long long i = 4 * grid_index();
    if (i + 4 <= n && aligned(a) && aligned(b) && aligned(y)) {
        real4 p = *(const real4*)(a + i), q = *(const real4*)(b + i);
        *(real4*)(y + i) = {f(p.x, q.x), f(p.y, q.y), f(p.z, q.z), f(p.w, q.w)};
    } else {
        for (long long k = i; k < i + 4 && k < n; k++) y[k] = f(a[k], b[k]);
    }
}

struct Relu {
    __device__ real operator()(real x, real) const { return relu_real(x); }
};
struct Sigmoid {
    __device__ real operator()(real x, real) const { return sigmoid(x); }
};
struct Tanh {
    __device__ real operator()(real x, real) const { return tanh_real(x); }
};

// From the result y and its gradient.
struct ReluGrad {
    __device__ real operator()(real y, real grad) const { return y <= (real)0 ? (real)0 : grad; }
};
struct SigmoidGrad {
    __device__ real operator()(real y, real grad) const { return grad * y * ((real)1 - y); }
};
struct TanhGrad {
    __device__ real operator()(real y, real grad) const { return grad * ((real)1 - y * y); }
};
struct Sum {
    __device__ real operator()(real a, real b) const { return a + b; }
};

// y[i] = max(x[i], 0)
extern "C" __global__ void relu_forward(const real* x, real* y, long long n) { map(x, x, y, n, Relu()); }

// y[i] = 1 / (1 + exp(-x[i]))
extern "C" __global__ void sigmoid_forward(const real* x, real* y, long long n) { map(x, x, y, n, Sigmoid()); }

// y[i] = tanh(x[i])
extern "C" __global__ void tanh_forward(const real* x, real* y, long long n) { map(x, x, y, n, Tanh()); }

// dx[i] = dy[i] where y[i] > 0, otherwise 0
extern "C" __global__ void relu_backward(const real* y, const real* dy, real* dx, long long n) {
    map(y, dy, dx, n, ReluGrad());
}

// dx[i] = dy[i] * y[i] * (1 - y[i])
extern "C" __global__ void sigmoid_backward(const real* y, const real* dy, real* dx, long long n) {
    map(y, dy, dx, n, SigmoidGrad());
}

// dx[i] = dy[i] * (1 - y[i]^2)
extern "C" __global__ void tanh_backward(const real* y, const real* dy, real* dx, long long n) {
    map(y, dy, dx, n, TanhGrad());
}

// y[i] = a[i] + b[i]: two parts of a gradient
extern "C" __global__ void sum(const real* a, const real* b, real* y, long long n) { map(a, b, y, n, Sum()); }
