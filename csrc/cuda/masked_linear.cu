// y = f((W * M) x + b) and its gradients, where M has the edge i -> o iff in_degrees[i] <= out_degrees[o].
//
// A first kernel finds the least and greatest degree of every block of units, with which a tile knows in two
// comparisons whether a block of the sum has no edge, all or some: of the first kind nothing is read, and of the last
// one the tile of W is mended in shared memory, so that what the mask hides is zero there whatever lies in W. Sorted
// degrees make one block in a tile of that kind; any order is right.
//
// Forward and the gradient of x have tiles with sums of every length. They, or parts of them where they are too few,
// are sorted, longest first, and dealt to the persistent blocks of all multiprocessors in snake order, so that who had
// a long one has a short one next. Parts leave float32 sums that another kernel adds up, first part first. The gradient
// of the weight has sums over the batch, of one length; its tiles without edges are written as zeros.
//
// What a tile costs, forward in bfloat16:
//   tall   128 x 128, warps of 64 x 64, 2 stages of 64 steps: 72 KiB of shared memory, 128 sums a thread; two blocks a
//          multiprocessor.
//   flat   64 x 64, warps of 64 x 16, 4 stages of 64 steps: 72 KiB, 32 sums; three blocks (sm_80: two). For up to 64
//          rows, and few tiles. Of rows that are not there no fragment is loaded.
//   slim   16 x 32, each warp a quarter of the steps, 8 stages of 64 steps: 54 KiB, 16 sums; four blocks (sm_80: two).
//          For up to 16 rows, when time is that of reading W: 28 KiB of it are on their way to a block.
// 64 steps of a tall tile take 96 KiB through shared memory, 32 written and 64 read as fragments: 768 cycles, where the
// matrix units take 1024 on sm_80, and on sm_90 about 820 by mma.sync and 512 by wgmma, which Triton's kernel uses and
// which reads each operand once. So a large batch is bound there to 62% of the matrix rate.
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "common/launch.h"
#include "common/ops.h"
#include "cuda/elementwise.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"
#include "cuda/stairs.h"

namespace fastcsm {
namespace {

using Tall = Shape<128, 128, 64, 64, 128, 2, 2>;
using Flat = Shape<64, 64, 64, 16, 128, 4, 3>;
using Slim = Shape<16, 32, 16, 32, 128, 8, 4>;
// Of float32, whose products are twice as deep and take more registers.
using DeepSlim = Shape<16, 32, 16, 32, 256, 4, 4>;
using Low = Shape<64, 128, 32, 64, 128, 2, 2>;
template <Precision P>
using Large = std::conditional_t<P == Precision::exact, Low, Tall>;

constexpr int kGroupRows = 2048;  // whose tiles follow each other, so that they find each other's operands in cache
constexpr int kLeastBlocks = 8;   // of a sum, that a part of a tile has

// A product of rows (B, depth) with W or its transpose.
struct RowsArgs {
  Stairs stairs;
  const void *given, *weight;  // x or the gradient of the preactivation, and W
  int given_aligned, weight_aligned;
  Finish finish;
  float* partials;  // (parts, B, columns); null: there is one part
  int parts, multiprocessors;
  int64_t units;  // parts of tiles
};

template <Precision P, class S, bool kForward>
FASTCSM_INLINE void multiply_rows(const RowsArgs& args) {
  using T = Element<P>;
  using Tile = Product<P, S, true, kForward>;
  SharedMemory memory(block_memory());
  Tile tile(memory);
  const Stairs& stairs = args.stairs;
  const int columns = kForward ? stairs.outputs : stairs.inputs, depth = kForward ? stairs.inputs : stairs.outputs;
  const int64_t rows = args.finish.rows;
  const Matrix<T> given{static_cast<const T*>(args.given), rows, depth, args.given_aligned};
  const Matrix<T> weight{static_cast<const T*>(args.weight), stairs.outputs, stairs.inputs, args.weight_aligned};
  const int tiles = (columns + S::kN - 1) / S::kN;

  const int64_t dealt = (args.units + args.multiprocessors - 1) / args.multiprocessors * args.multiprocessors;
  for (int64_t turn = blockIdx.x; turn < dealt; turn += gridDim.x) {
    // Every other round of the multiprocessors goes backwards, blocks being given to them in turn, or so it is hoped:
    // results do not depend on it.
    const int64_t round = turn / args.multiprocessors, seat = turn % args.multiprocessors;
    const int64_t unit = round * args.multiprocessors + (round % 2 ? args.multiprocessors - 1 - seat : seat);
    if (unit >= args.units) continue;
    // Groups of rows, in them the columns, longest sums first, in these the parts, and in a part the tiles of rows.
    const int64_t group = unit / (int64_t(kGroupRows / S::kM) * tiles * args.parts);
    const int64_t first = group * kGroupRows, rest = unit - group * (kGroupRows / S::kM) * tiles * args.parts;
    const int high = int((rows - first < kGroupRows ? rows - first : kGroupRows) + S::kM - 1) / S::kM;
    const int64_t m0 = first + rest % high * S::kM;
    const int part = int(rest / high % args.parts), n = int(rest / high / args.parts);
    const int n0 = (kForward ? tiles - 1 - n : n) * S::kN;

    const Range own(kForward ? stairs.out_bounds : stairs.in_bounds, stairs.group, n0, S::kN, columns);
    EdgeBlocks<kForward> blocks(stairs, own, part, args.parts);
    constexpr bool kFew = S::kM == Flat::kM;
    const int filled = kFew && rows - m0 < S::kM ? int(rows - m0 + 15) / 16 : S::kFragmentsM;
    const typename Tile::A left(given, m0);
    const typename Tile::B right(weight, n0);
    const auto load = [&](int block, T* a, T* b) {
      left.load(a, block / 2 * Tile::kSteps);
      right.load(b, block / 2 * Tile::kSteps);
    };
    // Columns of the rows that no edge of the tile reads may hold anything, so they become zero too.
    const auto prepare = [&](int block, T* a, T* b) {
      if (block % 2 == 0) return;
      const int k0 = block / 2 * Tile::kSteps, k = thread_number() % Tile::kSteps;
      clear_masked<typename Tile::B>(b, stairs, kForward ? n0 : k0, kForward ? k0 : n0);
      if (k0 + k < depth && (kForward ? stairs.in[k0 + k] > own.greatest : stairs.out[k0 + k] < own.least)) {
        for (int row = thread_number() / Tile::kSteps; row < S::kM; row += kProductThreads / Tile::kSteps) {
          a[row * Tile::A::kStride + k] = T{};
        }
      }
      __syncthreads();
    };
    tile.run(filled, [&] { return blocks.next(); }, load, prepare);
    tile.for_each_sum([&](int row, int column, float (&values)[4]) {
      if (args.partials == nullptr) {
        args.finish.template store<P, kForward>(m0 + row, n0 + column, values, false);
      } else if (m0 + row < rows && n0 + column < columns) {
        float* to = args.partials + ((part * rows + m0 + row) * columns + n0 + column);
        store_four(to, values, columns - n0 - column, columns % 4 == 0);
      }
    });
  }
}

template <Precision P, class S>
__global__ void __launch_bounds__(kProductThreads, S::kBlocks)
    masked_linear_fwd_kernel(const __grid_constant__ RowsArgs args) {
  multiply_rows<P, S, true>(args);
}

template <Precision P, class S>
__global__ void __launch_bounds__(kProductThreads, S::kBlocks)
    masked_linear_bwd_x_kernel(const __grid_constant__ RowsArgs args) {
  multiply_rows<P, S, false>(args);
}

// The gradient of the weight, G^T x, over slices of the batch.
struct WeightArgs {
  Stairs stairs;
  const void *grad, *x;  // (B, O), (B, I)
  int grad_aligned, x_aligned;
  int64_t rows, slice_rows;
  int slices;
  Finish finish;
  float* partials;  // (slices, O, I), unwritten in tiles without edges; null: there is one slice
};

template <Precision P>
__global__ void __launch_bounds__(kProductThreads, Large<P>::kBlocks)
    masked_linear_bwd_weight_kernel(const __grid_constant__ WeightArgs args) {
  using T = Element<P>;
  using S = Large<P>;
  using Tile = Product<P, S, false, false>;
  SharedMemory memory(block_memory());
  Tile tile(memory);
  const Stairs& stairs = args.stairs;
  const int in_tiles = (stairs.inputs + S::kN - 1) / S::kN;
  const int out_tiles = (stairs.outputs + S::kM - 1) / S::kM;
  const int slice = int(blockIdx.x) % args.slices, place = int(blockIdx.x) / args.slices;
  const int o0 = (out_tiles - 1 - place / in_tiles) * S::kM, i0 = place % in_tiles * S::kN;
  const Range in(stairs.in_bounds, stairs.group, i0, S::kN, stairs.inputs);
  const Range out(stairs.out_bounds, stairs.group, o0, S::kM, stairs.outputs);
  const bool empty = in.least > out.greatest, edge = !empty && in.greatest > out.least;
  if (empty && args.partials) return;
  const int64_t begin = slice * args.slice_rows;
  const int64_t end = begin + args.slice_rows < args.rows ? begin + args.slice_rows : args.rows;
  const Matrix<T> grad{static_cast<const T*>(args.grad), end, stairs.outputs, args.grad_aligned};
  const Matrix<T> x{static_cast<const T*>(args.x), end, stairs.inputs, args.x_aligned};
  const int blocks = empty || end < begin ? 0 : int((end - begin + Tile::kSteps - 1) / Tile::kSteps);
  int block = 0;
  const typename Tile::A left(grad, o0);
  const typename Tile::B right(x, i0);
  const auto load = [&](int k, T* a, T* b) {
    left.load(a, begin + int64_t(k) * Tile::kSteps);
    right.load(b, begin + int64_t(k) * Tile::kSteps);
  };
  tile.run(S::kFragmentsM, [&] { return block < blocks ? block++ : -1; }, load, [](int, T*, T*) {});
  tile.for_each_sum([&](int row, int column, float (&values)[4]) {
    if (args.partials == nullptr) {
      args.finish.template store<P, false>(o0 + row, i0 + column, values, edge);
    } else if (o0 + row < stairs.outputs && i0 + column < stairs.inputs) {
      float* to = args.partials + ((int64_t(slice) * stairs.outputs + o0 + row) * stairs.inputs + i0 + column);
      store_four(to, values, stairs.inputs - i0 - column, stairs.inputs % 4 == 0);
    }
  });
}

// The launches.

using torch::headeronly::ScalarType;

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <Precision P, class S, bool kAlongA, bool kAlongB>
int product_bytes() {
  SharedMemory measure;
  const Product<P, S, kAlongA, kAlongB> tile(measure);
  return measure.used();
}
int activation_bytes() {
  SharedMemory measure;
  measure.take<float>(kActivationRows * kActivationColumns);
  return measure.used();
}

// Calls function with a value of the shape whose tiles have that many columns.
template <Precision P, class Function>
void with_shape(int64_t columns, const Function& function) {
  if (columns == Slim::kN) {
    function(std::conditional_t<P == Precision::exact, DeepSlim, Slim>());
  } else if (columns == Flat::kN) {
    function(Flat());
  } else {
    function(Large<P>());
  }
}

// Of how many bytes copies of a matrix's rows may be.
int row_alignment(const void* p, int64_t columns, int bytes) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(p) | uintptr_t(columns * bytes);
  return all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 2;
}

// One call's layer: what its launches have in common.
class Layer {
 public:
  Layer(const Tensor& x, const Tensor& weight, const Tensor& in_degrees, const Tensor& out_degrees, bool reduced)
      : device_(x), like_(x), storage_(storage_of(x)), reduced_(reduced) {
    if (x.dim() != 2 || weight.dim() != 2)
      throw std::invalid_argument("fastcsm: x and weight must have two dimensions");
    const int64_t inputs = x.size(1), outputs = weight.size(0);
    if (inputs > kMostUnits || outputs > kMostUnits)
      throw std::invalid_argument("fastcsm: weight has shape (" + std::to_string(outputs) + ", " +
                                  std::to_string(inputs) + "), the cuda kernels take at most 2^28 of either");
    rows = x.size(0);
    stairs.inputs = int(inputs);
    stairs.outputs = int(outputs);
    this->x = checked(x, "x", x.scalar_type(), rows * inputs);
    this->weight = checked(weight, "weight", x.scalar_type(), outputs * inputs);
    stairs.in = static_cast<const int64_t*>(checked(in_degrees, "in_degrees", ScalarType::Long, inputs));
    stairs.out = static_cast<const int64_t*>(checked(out_degrees, "out_degrees", ScalarType::Long, outputs));
  }

  int64_t rows;
  Stairs stairs{};
  const void *x, *weight;

  int alignment(const void* p, int columns) const { return row_alignment(p, columns, bytes()); }

  Finish finish(void* out, int64_t finish_rows, int columns) const {
    Finish f{};
    f.out = out;
    f.rows = finish_rows;
    f.columns = columns;
    f.activation = -1;
    f.aligned = (reinterpret_cast<uintptr_t>(out) | uintptr_t(columns) * bytes()) % (4 * bytes()) == 0;
    return f;
  }

  // given W^T to finish (forward), or given W; `given` has as many columns as the sum is long.
  template <bool kForward>
  void rows_product(const void* given, const Finish& finish) {
    if (finish.rows == 0 || finish.columns == 0) return;
    const int64_t tall = parts_of(finish.rows, Tall::kM) * parts_of(finish.columns, Tall::kN);
    const bool few = finish.rows <= Flat::kM || 2 * tall <= device_.multiprocessors();
    const int columns = finish.rows <= Slim::kM ? Slim::kN : few ? Flat::kN : Tall::kN;
    with_precision(storage_, reduced_, [&](auto precision) {
      constexpr Precision P = decltype(precision)::value;
      with_shape<P>(columns, [&](auto shape) { launch_rows<P, decltype(shape), kForward>(given, finish); });
    });
  }

  // G^T x under the mask to a (O, I) weight's place.
  void weight_product(const void* grad, void* out) {
    if (stairs.group == 0) find_bounds(Tall::kSteps<float>);
    const bool exact = storage_ == Storage::f32 && !reduced_;
    const int64_t high = parts_of(stairs.outputs, exact ? Low::kM : Tall::kM);
    const int64_t tiles = high * parts_of(stairs.inputs, Tall::kN);
    const int64_t wanted = parts_of(2 * Tall::kBlocks * device_.multiprocessors(), tiles);
    const int64_t most = parts_of(rows, 4 * Tall::kM), slices = wanted < most ? wanted : most;
    WeightArgs a{};
    a.stairs = stairs;
    a.grad = grad;
    a.x = x;
    a.grad_aligned = alignment(grad, stairs.outputs);
    a.x_aligned = alignment(x, stairs.inputs);
    a.rows = rows;
    a.slices = int(slices > 1 ? slices : 1);
    a.slice_rows = parts_of(rows, a.slices);
    a.finish = finish(out, stairs.outputs, stairs.inputs);
    a.finish.in_degrees = stairs.in;
    a.finish.out_degrees = stairs.out;
    Tensor partials = new_partials(a.slices, a.finish);
    a.partials = a.slices > 1 ? static_cast<float*>(partials.mutable_data_ptr()) : nullptr;
    with_precision(storage_, reduced_, [&](auto precision) {
      constexpr Precision P = decltype(precision)::value;
      const int bytes = product_bytes<P, Large<P>, false, false>();
      device_.launch(masked_linear_bwd_weight_kernel<P>, tiles * a.slices, kProductThreads, bytes, a);
    });
    if (a.partials) add_up(a.partials, a.slices, a.finish);
  }

  // grad_y f'(a) to grad (null: f' = 1), and its sum over the rows to bias (null: not wanted).
  void activation_backward(const void* grad_y, const void* preactivation, int activation, void* grad, void* bias) {
    const int64_t columns = parts_of(stairs.outputs, kActivationColumns);
    const int64_t wanted = parts_of(8 * device_.multiprocessors(), columns), most = parts_of(rows, 4 * kActivationRows);
    ActivationArgs a{};
    a.grad_y = grad_y;
    a.preactivation = preactivation;
    a.grad = grad;
    a.rows = rows;
    a.outputs = stairs.outputs;
    a.activation = activation;
    const uintptr_t places = reinterpret_cast<uintptr_t>(grad_y) | reinterpret_cast<uintptr_t>(preactivation);
    a.aligned = (places | uintptr_t(a.outputs) * bytes()) % (4 * bytes()) == 0;
    const int64_t slices = most <= 1 ? 1 : wanted < most ? wanted : most;
    a.slice_rows = parts_of(rows, slices);
    const Finish sum = finish(bias, 1, stairs.outputs);
    Tensor partials = new_partials(bias ? slices : 1, sum);
    if (bias && slices > 1) a.sums = static_cast<float*>(partials.mutable_data_ptr());
    a.bias = slices == 1 ? bias : nullptr;
    const auto kernel = storage_ == Storage::bf16 ? masked_linear_bwd_activation_kernel<Precision::bf16>
                                                  : masked_linear_bwd_activation_kernel<Precision::exact>;
    device_.launch(kernel, columns * slices, kSumThreads, activation_bytes(), a);
    if (a.sums) add_up(a.sums, int(slices), sum);
  }

 private:
  static constexpr int64_t kMostUnits = 1 << 28;
  static constexpr int kReserved = 1 << 10;  // bytes of shared memory in every block, by the device

  int bytes() const { return storage_ == Storage::bf16 ? 2 : 4; }

  void find_bounds(int group) {
    const int64_t in = parts_of(stairs.inputs, group), out = parts_of(stairs.outputs, group);
    bounds_ = new_tensor(like_, {2 * (in + out)}, ScalarType::Long);
    stairs.group = group;
    BoundsArgs a{stairs, static_cast<int64_t*>(bounds_.mutable_data_ptr()), nullptr};
    a.out_bounds = a.in_bounds + 2 * in;
    stairs.in_bounds = a.in_bounds;
    stairs.out_bounds = a.out_bounds;
    const int64_t blocks = parts_of((in + out) * kWarp, kBoundsThreads);
    if (blocks > 0) device_.launch(masked_linear_bounds_kernel, blocks, kBoundsThreads, 0, a);
  }

  // Float32 sums of several parts; none of one.
  Tensor new_partials(int64_t parts, const Finish& finish) const {
    return new_tensor(like_, {parts > 1 ? parts * finish.rows * finish.columns : 0}, ScalarType::Float);
  }

  void add_up(const float* partials, int parts, const Finish& finish) const {
    const SumArgs a{partials, parts, finish};
    const int64_t blocks = parts_of(finish.rows * parts_of(finish.columns, 4), kSumThreads);
    const int64_t most = 16 * device_.multiprocessors();
    with_precision(storage_, reduced_, [&](auto precision) {
      device_.launch(masked_linear_sum_kernel<decltype(precision)::value>, blocks < most ? blocks : most, kSumThreads,
                     0, a);
    });
  }

  template <Precision P, class S, bool kForward>
  void launch_rows(const void* given, const Finish& finish) {
    constexpr int kSteps = S::template kSteps<Element<P>>;
    const int bytes = product_bytes<P, S, true, kForward>();
    find_bounds(kSteps);
    const int depth = kForward ? stairs.inputs : stairs.outputs;
    const int fitting = (block_limit() + kReserved) / (bytes + kReserved);
    const int64_t slots = int64_t(fitting < S::kBlocks ? fitting : S::kBlocks) * device_.multiprocessors();
    const int64_t tiles = parts_of(finish.rows, S::kM) * parts_of(finish.columns, S::kN);
    // Two for a multiprocessor, of which snake order makes one long and one short; of slim tiles, which have nothing to
    // compute, one.
    const int64_t wanted = (S::kM == Slim::kM ? 1 : 2) * device_.multiprocessors() / tiles;
    const int64_t most = parts_of(depth, kSteps) / kLeastBlocks;
    const int64_t parts = wanted < most ? wanted : most;
    RowsArgs a{};
    a.stairs = stairs;
    a.given = given;
    a.weight = weight;
    a.given_aligned = alignment(given, depth);
    a.weight_aligned = alignment(weight, stairs.inputs);
    a.finish = finish;
    a.parts = int(parts > 1 ? parts : 1);
    a.multiprocessors = device_.multiprocessors();
    a.units = tiles * a.parts;
    Tensor partials = new_partials(a.parts, finish);
    a.partials = a.parts > 1 ? static_cast<float*>(partials.mutable_data_ptr()) : nullptr;
    const auto kernel = kForward ? masked_linear_fwd_kernel<P, S> : masked_linear_bwd_x_kernel<P, S>;
    device_.launch(kernel, a.units < slots ? a.units : slots, kProductThreads, bytes, a);
    if (a.partials) add_up(a.partials, a.parts, finish);
  }

  Device device_;
  Tensor like_, bounds_;
  Storage storage_;
  bool reduced_;
};

}  // namespace

int64_t masked_linear_bytes(const std::string& kernel, bool half, int64_t tile) {
  int64_t bytes = kernel == "masked_linear_bwd_activation" ? activation_bytes() : 0;
  with_precision(half ? Storage::bf16 : Storage::f32, true, [&](auto precision) {
    constexpr Precision P = decltype(precision)::value;
    with_shape<P>(tile, [&](auto shape) {
      using S = decltype(shape);
      if (kernel == "masked_linear_fwd") bytes = product_bytes<P, S, true, true>();
      if (kernel == "masked_linear_bwd_x") bytes = product_bytes<P, S, true, false>();
      if (kernel == "masked_linear_bwd_weight") bytes = product_bytes<P, Tall, false, false>();
    });
  });
  return bytes;
}

std::tuple<Tensor, Tensor> masked_linear(Tensor x, Tensor weight, Tensor bias, Tensor in_degrees, Tensor out_degrees,
                                         int64_t activation, bool reduced) {
  Layer layer(x, weight, in_degrees, out_degrees, reduced);
  Tensor y = new_tensor(x, {layer.rows, layer.stairs.outputs});
  Tensor preactivation = activation < 0 ? new_tensor(x, {0}) : new_like(y);
  Finish finish = layer.finish(y.mutable_data_ptr(), layer.rows, layer.stairs.outputs);
  finish.preactivation = preactivation.mutable_data_ptr();
  finish.bias = checked(bias, "bias", x.scalar_type(), layer.stairs.outputs);
  finish.activation = int(activation);
  layer.rows_product<true>(layer.x, finish);
  return {y, preactivation};
}

Tensor masked_linear_backward_into(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight, Tensor in_degrees,
                                   Tensor out_degrees, int64_t activation, bool need_x, Tensor grad_weight,
                                   Tensor grad_bias, bool reduced) {
  Layer layer(x, weight, in_degrees, out_degrees, reduced);
  const int64_t inputs = layer.stairs.inputs, outputs = layer.stairs.outputs;
  const void* grad = checked(grad_y, "grad_y", x.scalar_type(), layer.rows * outputs);
  const bool need_weight = grad_weight.numel() > 0, need_bias = grad_bias.numel() > 0;
  if (need_weight) checked(grad_weight, "grad_weight", x.scalar_type(), outputs * inputs);
  if (need_bias) checked(grad_bias, "grad_bias", x.scalar_type(), outputs);
  Tensor grad_x = need_x ? new_like(x) : new_tensor(x, {0});
  const bool activates = activation >= 0 && layer.rows > 0;
  Tensor product = new_tensor(x, {activates ? layer.rows * outputs : 0});
  if (outputs > 0 && (activates || need_bias)) {
    const void* given =
        activates ? checked(preactivation, "preactivation", x.scalar_type(), layer.rows * outputs) : nullptr;
    void* to = activates ? product.mutable_data_ptr() : nullptr;
    layer.activation_backward(grad, given, int(activation), to, need_bias ? grad_bias.mutable_data_ptr() : nullptr);
    if (activates) grad = to;
  }
  if (need_x) layer.rows_product<false>(grad, layer.finish(grad_x.mutable_data_ptr(), layer.rows, layer.stairs.inputs));
  if (need_weight) layer.weight_product(grad, grad_weight.mutable_data_ptr());
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor> masked_linear_backward(Tensor grad_y, Tensor preactivation, Tensor x, Tensor weight,
                                                          Tensor in_degrees, Tensor out_degrees, int64_t activation,
                                                          bool need_x, bool need_weight, bool need_bias, bool reduced) {
  Tensor grad_weight = need_weight ? new_like(weight) : new_tensor(x, {0});
  Tensor grad_bias = new_tensor(x, {need_bias ? weight.size(0) : 0});
  Tensor grad_x = masked_linear_backward_into(grad_y, preactivation, x, weight, in_degrees, out_degrees, activation,
                                              need_x, grad_weight, grad_bias, reduced);
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace fastcsm
