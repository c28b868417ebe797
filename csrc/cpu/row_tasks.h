// An op on rows that need nothing of each other: a task carries a block of them from the op's arguments to its results,
// in memory of its thread's. How rows are split changes no row's result. No include guard: included once per
// instruction set.

constexpr int64_t kBlockBytes = 200 << 10;  // of a block's activations: well inside the second-level cache

// A Block has
//   static scores(args)             how often at least it evaluates the head, for each row
//   static capacity(head, share)    the rows it may have; share: those of a thread
//   layout(head, arena, capacity)   its memory
//   run(args, head, begin, rows)    rows [begin, begin + rows) of the op
template <class T, class Block, class Args>
struct RowTasks {
  const Args& a;
  Packed<T> head;
  int64_t capacity;

  static void task(void* self, int64_t task, Arena arena) {
    const auto& t = *static_cast<const RowTasks*>(self);
    Block block;
    block.layout(t.head, arena, t.capacity);
    const int64_t begin = task * t.capacity, rows = t.a.rows - begin < t.capacity ? t.a.rows - begin : t.capacity;
    block.run(t.a, t.head, begin, rows);
  }
};

template <class S, class T, class Block, class Args>
void run_rows(const Args& a) {
  if (a.rows == 0) return;
  RowTasks<T, Block, Args> tasks{a, {}, 0};
  const PackedMemory<S, T> weights(tasks.head, a.head, false, 0);
  const int64_t threads = team(static_cast<double>(a.rows) * Block::scores(a) * tasks.head.products());
  tasks.capacity = Block::capacity(tasks.head, (a.rows + threads - 1) / threads);
  Arena measure(nullptr);
  Block().layout(tasks.head, measure, tasks.capacity);
  run_tasks((a.rows + tasks.capacity - 1) / tasks.capacity, measure.bytes(), threads, tasks.task, &tasks);
}

// Rows that are spread over all threads, as many at once as fit in a tile.
template <class T>
int64_t shared_rows(const Packed<T>& head, int64_t share, int64_t bytes = kBlockBytes) {
  const int64_t fits = tile_rows(head, bytes);
  return share < fits ? share : fits;
}

// Gives rows [begin, begin + rows) their contexts, of whose features `given` are in memory.
template <class S, class Rows>
void load_contexts(Rows& to, const void* context, int64_t begin, int64_t rows, int64_t given) {
  const S* from = static_cast<const S*>(context) + begin * given;
  to.set_context(rows, given, [&](int64_t r, int64_t j) { return from_storage(from[r * given + j]); });
}

template <class T, int n>
void store_row(void* const (&out)[n], int64_t r, const double (&values)[n]) {
  for (int i = 0; i < n; ++i) static_cast<T*>(out[i])[r] = static_cast<T>(values[i]);
}
