// Kernels with one planted fault each, by name on the command line, and "none" without: what the instrument reports of
// them is what tests/emulated/test_emulation.py looks at. Also the matrix instructions against plain sums.
#include "cuda/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using namespace fastcsm;

struct Args {
  const char* fault;
  float* out;
  bool is(const char* name) const { return std::strcmp(fault, name) == 0; }
};

// Every thread passes its number to its neighbour through shared memory and adds what its warp holds.
__global__ void kernel(Args args) {
  SharedMemory memory(block_memory());
  float* first = memory.take<float>(64);
  float* second = memory.take<float>(64);
  float* copied = memory.take<float>(64);
  const int i = threadIdx.x, next = (i + 1) % 64;
  if (args.is("early return") && i == 40) return;
  if (args.is("atomic before write")) atomicAdd(reinterpret_cast<unsigned*>(second) + i, 1u);
  if (!args.is("read before write")) first[i] = float(i);
  if (args.is("divergent barrier") && i >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  const bool late = args.is("copy awaited too late"), alone = args.is("copy without a barrier");
  copy_async<4>(copied + i, args.out + 64 * blockIdx.x + i, i % 2);  // zeros
  commit_copies();
  if (!args.is("copy never awaited") && !late) wait_copies<0>();
  if (!alone) __syncthreads();
  second[i] = first[next];
  if (!args.is("copy never awaited")) second[i] += copied[next];
  if (late) wait_copies<0>();
  if (args.is("copy onto a read") && i == 1) copy_async<4>(first + i, args.out, true);
  if (args.is("race")) first[i] = 0;
  if (args.is("overflow of an array")) first[64 + i % 4] = 1;
  if (args.is("overflow of the block")) second[1 << 10] = 1;
  if (args.is("race in device memory")) args.out[64 * blockIdx.x + i / 32] = 1;
  if (args.is("race of blocks") && i == 0) args.out[64 * blockIdx.x] = args.out[64];
  if (args.is("overflow of a tensor")) args.out[64 * gridDim.x] = 1;
  if (args.is("misaligned vector")) args.out[0] = reinterpret_cast<float2*>(first + 1)->x;
  __syncwarp();
  if (args.is("race within a warp")) first[next ^ 1] = 0;
  float sum = second[i ^ 1];
  if (!args.is("divergent shuffle") || i % 32 < 16) {
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }
  args.out[64 * blockIdx.x + i] = sum;
}

// c = a b by one instruction, operands taken straight and transposed from memory, against sums in double.
struct Product {
  const float *a, *b;  // (16, depth), (depth, 16)
  float* c;            // (4, 16, 16)
};

template <Precision P>
__global__ void product_kernel(Product args) {
  using T = Element<P>;
  constexpr int depth = kDepth<P>;
  SharedMemory memory(block_memory());
  const int sa = padded_stride<T>(depth), st = padded_stride<T>(16);
  T* a = memory.take<T>(16 * sa);      // a[i][k]
  T* at = memory.take<T>(depth * st);  // a[i][k] at [k][i]
  T* b = memory.take<T>(depth * st);   // b[k][j]
  T* bt = memory.take<T>(16 * sa);     // b[k][j] at [j][k]
  const int lane = threadIdx.x;
  for (int i = lane; i < 16 * depth; i += kWarp) {
    const int row = i / depth, k = i % depth;
    a[row * sa + k] = at[k * st + row] = to_element<P>(args.a[i]);
    b[k * st + row] = bt[row * sa + k] = to_element<P>(args.b[k * 16 + row]);
  }
  __syncthreads();
  for (int way = 0; way < 4; ++way) {
    FragmentA<P> fa;
    FragmentB<P> fb[2];
    if (way % 2) {
      load_a_transposed(fa, at, st, lane);
    } else {
      load_a(fa, a, sa, lane);
    }
    if (way / 2) {
      load_b_transposed(fb, bt, sa, lane);
    } else {
      load_b(fb, b, st, lane);
    }
    for (int half = 0; half < 2; ++half) {
      Accumulator c{};
      multiply_add(c, OperandA<P>(fa), OperandB<P>(fb[half]));
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2 + 8 * half;
        args.c[way * 256 + row * 16 + column] = c.r[i];
      }
    }
  }
}

template <class Args>
void run(void (*kernel)(Args), int blocks, int threads, size_t shared, Args args) {
  struct Call {
    void (*kernel)(Args);
    Args args;
  } call{kernel, args};
  emulation::run(
      dim3(blocks), dim3(threads), shared,
      [](void* self) { static_cast<Call*>(self)->kernel(static_cast<Call*>(self)->args); }, &call);
}

// Largest error of the products over the sum of absolute terms.
template <Precision P>
double product_error() {
  constexpr int depth = kDepth<P>;
  std::vector<float> a(16 * depth), b(16 * depth), c(4 * 256);
  for (float& x : a) x = float(drand48() - 0.5);
  for (float& x : b) x = float(drand48() - 0.5);
  run(product_kernel<P>, 1, kWarp, 8 << 10, Product{a.data(), b.data(), c.data()});
  double worst = 0;
  for (int i = 0; i < 4 * 256; ++i) {
    double sum = 0, size = 0;
    for (int k = 0; k < depth; ++k) {
      const double term = double(a[i / 16 % 16 * depth + k]) * b[k * 16 + i % 16];
      sum += term;
      size += term < 0 ? -term : term;
    }
    const double error = (c[i] < sum ? sum - c[i] : c[i] - sum) / size;
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

// 2^23 and `more`, the sum of two products.
double sum_above(float more) {
  constexpr int depth = kDepth<Precision::tf32>;
  std::vector<float> a(16 * depth), b(16 * depth), c(4 * 256);
  a[0] = 0x1p12f, b[0] = 0x1p11f;
  a[1] = 1, b[16] = more;
  run(product_kernel<Precision::tf32>, 1, kWarp, 8 << 10, Product{a.data(), b.data(), c.data()});
  return c[0];
}

}  // namespace

int main(int, char** arguments) {
  std::vector<float> out(2 * 64);
  run(kernel, 2, 64, 3 * (64 * 4 + SharedMemory::kGap), Args{arguments[1], out.data()});
  std::printf("%g %g %g %g\n", out[0], out[63], product_error<Precision::exact>(), product_error<Precision::tf32>());
  std::printf("%g\n", product_error<Precision::bf16>());
  std::printf("%.9g %.9g\n", sum_above(0.984375f), sum_above(1.984375f));
}
