// Dropout with the mask that the CPU draws from a ChaCha8 stream.
//
//     for (i = 0; i < count; i++)
//         ys[i] = xs[i] * (half word first + i of the key stream >= threshold ? scale : 0);
//
// Half words are the lower and upper 16 bits of the stream's words, in this order. The key has 256 bits. A
// block of the stream has 16 words and so serves 32 elements: each lane of a warp computes one block and keeps its decisions
// as the bits of a word. Then the warp goes through its 1024 elements, 32 neighbours at a time.

#define THREADS 128

static __device__ unsigned rotate(unsigned x, int bits) { return x << bits | x >> (32 - bits); }

static __device__ void quarter_round(unsigned& a, unsigned& b, unsigned& c, unsigned& d) {
    a += b, d = rotate(d ^ a, 16);
    c += d, b = rotate(b ^ c, 12);
    a += b, d = rotate(d ^ a, 8);
    c += d, b = rotate(b ^ c, 7);
}

// The block `counter` of the key stream (Bernstein 2008, "ChaCha, a variant of Salsa20", with 8 rounds).
static __device__ void chacha8(const unsigned* key, unsigned long long stream, unsigned long long counter, unsigned* words) {
    unsigned start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
#pragma unroll
    for (int i = 0; i < 8; i++) start[4 + i] = key[i];
    start[12] = (unsigned)counter, start[13] = (unsigned)(counter >> 32);
    start[14] = (unsigned)stream, start[15] = (unsigned)(stream >> 32);
#pragma unroll
    for (int i = 0; i < 16; i++) words[i] = start[i];
#pragma unroll
    for (int round = 0; round < 8; round += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) quarter_round(words[i], words[4 + i], words[8 + i], words[12 + i]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            quarter_round(words[i], words[4 + (i + 1) % 4], words[8 + (i + 2) % 4], words[12 + (i + 3) % 4]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) words[i] += start[i];
}

// The decisions of the block `counter`, one bit per half word.
static __device__ unsigned decisions(const unsigned* key, unsigned long long stream, unsigned long long counter,
                                     unsigned threshold) {
    unsigned words[16], keep = 0;
    chacha8(key, stream, counter, words);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        keep |= (unsigned)((words[i] & 0xffffu) >= threshold) << (2 * i);
        keep |= (unsigned)((words[i] >> 16) >= threshold) << (2 * i + 1);
    }
    return keep;
}

static __device__ void split(unsigned long long key0, unsigned long long key1, unsigned long long key2,
                             unsigned long long key3, unsigned* key) {
    unsigned long long keys[4] = {key0, key1, key2, key3};
#pragma unroll
    for (int i = 0; i < 8; i++) key[i] = (unsigned)(keys[i / 2] >> (32 * (i % 2)));
}

// `block` is the first block of the key stream, and `skipped` the number of its half words before the first element.
extern "C" __global__ void __launch_bounds__(THREADS) dropout(
    const real* xs, real* ys, long long count, unsigned long long key0, unsigned long long key1,
    unsigned long long key2, unsigned long long key3, unsigned long long stream, unsigned long long block, int skipped,
    unsigned threshold, real scale) {
    int lane = threadIdx.x % 32;
    long long first = ((long long)blockIdx.x * THREADS + threadIdx.x - lane) * 32 - skipped;
    if (first >= count) return;
    unsigned key[8];
    split(key0, key1, key2, key3, key);
    unsigned keep = decisions(key, stream, block + (unsigned long long)blockIdx.x * THREADS + threadIdx.x, threshold);
#pragma unroll 4
    for (int i = 0; i < 32; i++) {
        unsigned bits = __shfl_sync(ALL, keep, i);
        long long at = first + 32 * i + lane;
        if (at >= 0 && at < count) ys[at] = xs[at] * (bits >> lane & 1 ? scale : (real)0);
    }
}

// The same for `count` rows of a larger array: row i here is row rows[i] there, whose first half word is number
// `skipped` of `block`. `blocks` is the largest number of blocks that a row lies in; each lane computes one of them.
extern "C" __global__ void __launch_bounds__(THREADS) dropout_rows(
    const real* xs, real* ys, const unsigned* rows, long long count, int columns, int blocks,
    unsigned long long key0, unsigned long long key1, unsigned long long key2, unsigned long long key3,
    unsigned long long stream, unsigned long long block, int skipped, unsigned threshold, real scale) {
    int lane = threadIdx.x % 32;
    long long unit = (long long)blockIdx.x * THREADS + threadIdx.x, units = count * blocks;
    if (unit - lane >= units) return;
    unsigned key[8], keep = 0;
    split(key0, key1, key2, key3, key);
    if (unit < units) {
        long long start = (long long)rows[unit / blocks] * columns + skipped;
        keep = decisions(key, stream, block + start / 32 + unit % blocks, threshold);
    }
    for (int i = 0; i < 32; i++) {
        unsigned bits = __shfl_sync(ALL, keep, i);
        long long other = unit - lane + i;
        if (other >= units) continue;
        long long row = other / blocks, start = (long long)rows[row] * columns + skipped;
        long long column = (start / 32 + other % blocks) * 32 + lane - start;
        long long at = row * columns + column;
        if (column >= 0 && column < columns) ys[at] = xs[at] * (bits >> lane & 1 ? scale : (real)0);
    }
}
