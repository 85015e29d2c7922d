// A batch of images and their labels, from the bytes of a whole set.
//
//     xs[n][c][y][x] = (value - statistics[0][c]) * statistics[1][c]
//     value          = bytes[index][c][y - down][x - right] / 255, or 0 where that is outside of the image
//     labels[n]      = all_labels[index]
//
// (index, right, down, flip) are the four numbers plan[n]; with `flip` the columns of the image count from the right.
// Shapes: bytes (images, channels, height, width), xs (batch, channels, height, width), statistics (2, channels), the mean
// and the inverse of the deviation. A thread writes one element of xs, and the first of each image its label; `count` is
// the number of elements.
extern "C" __global__ void image_batch(const unsigned char* __restrict__ bytes, const unsigned* __restrict__ all_labels, const real* __restrict__ statistics, const int* __restrict__ plan, real* __restrict__ xs, unsigned* __restrict__ labels, int channels, int height, int width, long long count) {
    const long long i = grid_index();
    if (i >= count) return;
    const int area = height * width, size = channels * area;
    const int n = (int)(i / size), at = (int)(i % size), c = at / area;
    const int index = plan[4 * n], right = plan[4 * n + 1], down = plan[4 * n + 2], flip = plan[4 * n + 3];
    const int y = at % area / width - down, x = at % width - right;
    real value = 0;
    if (y >= 0 && y < height && x >= 0 && x < width)
        value = (real)bytes[(long long)index * size + c * area + y * width + (flip ? width - 1 - x : x)] / (real)255;
    xs[i] = (value - statistics[c]) * statistics[channels + c];
    if (at == 0) labels[n] = all_labels[index];
}
