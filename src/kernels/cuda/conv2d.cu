// Convolution for one shape, and its gradient with respect to the input.
//
//     out[n][o][y][x] = bias[o] + sum over c, ky, kx of weight(o, c, ky, kx) * in[n][c][row(y, ky)][column(x, kx)]
//     row(y, ky)    = (y * STRIDE + ky - PAD_Y) / UP
//     column(x, kx) = (x * STRIDE + kx - PAD_X) / UP
//
// A term counts only if the division leaves no remainder and the position is inside `in`. The sums run over c, ky, kx in
// this order for every choice of tiles. Shapes: in (batch, CIN, IN_H, IN_W), out (batch, COUT, OUT_H, OUT_W).
//
// - The forward pass has UP = 1 and weight(o, c, ky, kx) = w[o][c][ky][kx].
// - The gradient with respect to the input has STRIDE = 1, UP the stride of the forward pass, FLIP defined, `in` the
//   gradient of the output, PAD_Y = KH - 1 - padding, and weight(o, c, ky, kx) = w[c][o][KH - 1 - ky][KW - 1 - kx].
//
// A block computes, for one image, a tile of ROWS * UP rows, ACROSS * PX columns and GROUPS * CO channels; a thread, UP
// rows, PX columns and CO channels of them, in registers. CO is a multiple of 4 and PX one of UP. The block takes CHUNK
// input channels, a divisor of CIN, at a time into shared memory: their part of `in` with its border, and their weights.

// check: CIN=16 COUT=16 KH=3 KW=3 PAD_Y=1 PAD_X=1 STRIDE=1 UP=1 IN_H=32 IN_W=32 OUT_H=32 OUT_W=32 PX=4 CO=8 ACROSS=8 ROWS=16 GROUPS=2 CHUNK=8

#define FLOOR(a, b) ((a) >= 0 ? (a) / (b) : -((-(a) + (b) - 1) / (b)))
#define TAPS (KH * KW)
#define CHANNELS (GROUPS * CO)
#define THREADS (ACROSS * ROWS * GROUPS)
// Tiles of an image.
#define TILES_X ((OUT_W + ACROSS * PX - 1) / (ACROSS * PX))
#define TILES_Y ((OUT_H + ROWS * UP - 1) / (ROWS * UP))
#define TILES_C ((COUT + CHANNELS - 1) / CHANNELS)
// Input columns from one thread to the next, and input columns that a thread reads.
#define STEP (PX * STRIDE / UP)
#define LOW_X FLOOR(-PAD_X, UP)
#define SPAN (FLOOR((PX - 1) * STRIDE + KW - 1 - PAD_X, UP) - LOW_X + 1)
#define SPAN4 ((SPAN + 3) / 4 * 4)
#define LOW_Y FLOOR(-PAD_Y, UP)
#define HIGH ((ROWS - 1) * STRIDE + FLOOR(UP - 1 + KH - 1 - PAD_Y, UP) - LOW_Y + 1)
// A row of the tile in shared memory: an odd number of quadruples, for the sake of the banks.
#define WIDE ((ACROSS - 1) * STEP + SPAN4)
#define PITCH ((WIDE + 3) / 8 * 8 + 4)
// Whether whole rows are loaded, in quadruples.
#define QUADRUPLES (TILES_X == 1 && IN_W % 4 == 0)
// A tap's weights in shared memory.
#define WEIGHTS (CHANNELS + 4)

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d(const real* __restrict__ in, const real* __restrict__ w, const real* __restrict__ bias, real* __restrict__ out) {
    DYNAMIC_SHARED(real, shared);
    real* tile = shared;
    real* weights = shared + CHUNK * HIGH * PITCH;
    const int tid = threadIdx.x;
    const int across = tid % ACROSS, row = tid / ACROSS % ROWS, group = tid / (ACROSS * ROWS);
    int block = blockIdx.x;
    const int base = block % TILES_C * CHANNELS;
    block /= TILES_C;
    const int left = block % TILES_X * ACROSS;
    block /= TILES_X;
    const int top = block % TILES_Y * ROWS;
    const long long image = block / TILES_Y;
    in += image * CIN * IN_H * IN_W;
    out += image * COUT * OUT_H * OUT_W;

    real sums[CO][UP][PX];
#pragma unroll
    for (int o = 0; o < CO; o++) {
        const int channel = base + group * CO + o;
        const real start = bias != 0 && channel < COUT ? bias[channel] : (real)0;
#pragma unroll
        for (int r = 0; r < UP; r++)
#pragma unroll
            for (int p = 0; p < PX; p++) sums[o][r][p] = start;
    }
#if QUADRUPLES
    // Elements outside of the input stay 0.
    const bool aligned = (unsigned long long)in % sizeof(real4) == 0;
    for (int i = tid; i < CHUNK * HIGH * PITCH; i += THREADS) tile[i] = 0;
    __syncthreads();
#endif
    for (int first = 0; first < CIN; first += CHUNK) {
#if QUADRUPLES
        if (aligned) {
#pragma unroll 4
            for (int i = tid; i < CHUNK * HIGH * (IN_W / 4); i += THREADS) {
                const int x = i % (IN_W / 4) * 4, line = i / (IN_W / 4), y = top * STRIDE + LOW_Y + line % HIGH;
                if (y < 0 || y >= IN_H) continue;
                const real4 four = *(const real4*)(in + ((first + line / HIGH) * IN_H + y) * IN_W + x);
                real* to = tile + line * PITCH + x - LOW_X;
                if (x - LOW_X < WIDE) to[0] = four.x;
                if (x - LOW_X + 1 < WIDE) to[1] = four.y;
                if (x - LOW_X + 2 < WIDE) to[2] = four.z;
                if (x - LOW_X + 3 < WIDE) to[3] = four.w;
            }
        } else
#endif
            for (int i = tid; i < CHUNK * HIGH * WIDE; i += THREADS) {
                const int column = i % WIDE, line = i / WIDE, c = first + line / HIGH;
                const int y = top * STRIDE + LOW_Y + line % HIGH, x = left * STEP + LOW_X + column;
                const bool inside = y >= 0 && y < IN_H && x >= 0 && x < IN_W;
                tile[line * PITCH + column] = inside ? in[(c * IN_H + y) * IN_W + x] : (real)0;
            }
        for (int i = tid; i < CHUNK * TAPS * CHANNELS; i += THREADS) {
            // Neighbouring threads read neighbouring weights.
#ifdef FLIP
            const int tap = i % TAPS, o = i / TAPS % CHANNELS, c = i / (TAPS * CHANNELS);
            const int from = ((first + c) * COUT + base + o) * TAPS + tap, to = TAPS - 1 - tap;
#else
            const int tap = i % TAPS, c = i / TAPS % CHUNK, o = i / (TAPS * CHUNK);
            const int from = ((base + o) * CIN + first + c) * TAPS + tap, to = tap;
#endif
            weights[(c * TAPS + to) * WEIGHTS + o] = base + o < COUT ? w[from] : (real)0;
        }
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < CHUNK; c++) {
#pragma unroll
            for (int ky = 0; ky < KH; ky++) {
                // The only row of the thread that this row of the kernel contributes to, if UP > 1.
                const int r = ((PAD_Y - ky) % UP + UP) % UP;
                const real* from = tile + (c * HIGH + row * STRIDE + (r + ky - PAD_Y) / UP - LOW_Y) * PITCH + across * STEP;
                real v[SPAN4];
#pragma unroll
                for (int i = 0; i < SPAN4; i += 4) {
#if STEP % 4 == 0
                    const real4 four = *(const real4*)(from + i);
                    v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
#else
                    v[i] = from[i], v[i + 1] = from[i + 1], v[i + 2] = from[i + 2], v[i + 3] = from[i + 3];
#endif
                }
#pragma unroll
                for (int kx = 0; kx < KW; kx++)
#pragma unroll
                    for (int o = 0; o < CO; o += 4) {
                        const real4 f = *(const real4*)(weights + (c * TAPS + ky * KW + kx) * WEIGHTS + group * CO + o);
#pragma unroll
                        for (int p = 0; p < PX; p++)
                            if ((p * STRIDE + kx - PAD_X) % UP == 0) {
                                const real x = v[(p * STRIDE + kx - PAD_X) / UP - LOW_X];
                                sums[o][r][p] += f.x * x;
                                sums[o + 1][r][p] += f.y * x;
                                sums[o + 2][r][p] += f.z * x;
                                sums[o + 3][r][p] += f.w * x;
                            }
                    }
            }
        }
        __syncthreads();
    }
    const int x = (left + across) * PX;
#pragma unroll
    for (int o = 0; o < CO; o++)
#pragma unroll
        for (int r = 0; r < UP; r++) {
            const int channel = base + group * CO + o, y = (top + row) * UP + r;
            if (channel < COUT && y < OUT_H) {
                real* to = out + (channel * OUT_H + y) * OUT_W + x;
#if PX % 4 == 0 && OUT_W % 4 == 0
#pragma unroll
                for (int p = 0; p < PX; p += 4)
                    if (x + p < OUT_W) {
                        real4 four;
                        four.x = sums[o][r][p], four.y = sums[o][r][p + 1], four.z = sums[o][r][p + 2], four.w = sums[o][r][p + 3];
                        *(real4*)(to + p) = four;
                    }
#else
#pragma unroll
                for (int p = 0; p < PX; p++)
                    if (x + p < OUT_W) to[p] = sums[o][r][p];
#endif
            }
        }
}
