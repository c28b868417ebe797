"""Small kernels in PTX, sound as they stand, into which tests plant one fault each."""

import re
import struct

from fastcsm.bench.machine import host

HEAD = """
.version 8.0
.target sm_90a
.address_size 64
.file 1 "planted.cu"
"""

# 64 threads, two blocks: each passes its number, and a number it copied, to its neighbour.
PASSING = (
    HEAD
    + """
.visible .entry passing(.param .u64 out, .param .u64 in, .param .u32 n)
{
  .local .align 16 .b8 stack[16];
  .shared .align 128 .b8 first[256];
  .shared .align 128 .b8 copied[256];
  .reg .pred %p<9>;
  .reg .b32 %r<40>;
  .reg .b64 %rd<20>;
  .loc 1 10 1
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  ld.param.u32 %r1, [n];
  mov.u32 %r2, %tid.x;
  mov.u32 %r3, %ctaid.x;
  mad.lo.s32 %r4, %r3, 64, %r2;
  shl.b32 %r5, %r2, 2;
  mov.u32 %r6, first;
  add.s32 %r7, %r6, %r5;
  add.s32 %r8, %r2, 1;
  and.b32 %r8, %r8, 63;
  shl.b32 %r9, %r8, 2;
  add.s32 %r10, %r6, %r9;
  mov.u32 %r11, copied;
  add.s32 %r12, %r11, %r5;
  add.s32 %r13, %r11, %r9;
  mul.wide.s32 %rd3, %r4, 4;
  add.s64 %rd4, %rd2, %rd3;
  add.s64 %rd5, %rd1, %rd3;
  setp.lt.s32 %p1, %r4, %r1;
  setp.lt.u32 %p2, %r2, 16;
  and.b32 %r14, %r2, 31;
  mov.u32 %r28, 0;
  mov.u32 %r29, 0;
  .loc 1 20 1
  st.shared.u32 [%r7], %r2;
  selp.b32 %r21, 4, 0, %p1;
  cp.async.ca.shared.global [%r12], [%rd4], 4, %r21;
  cp.async.commit_group;
  cp.async.wait_group 0;
  bar.sync 0;
  .loc 1 30 1
  ld.shared.u32 %r15, [%r10];
  ld.shared.u32 %r16, [%r13];
  add.s32 %r17, %r15, %r16;
  st.local.u32 [stack], %r17;
  ld.local.u32 %r17, [stack];
  .loc 1 40 1
  shfl.sync.bfly.b32 %r18, %r17, 1, 31, -1;
  xor.b32 %r18, %r18, %r17;
  bar.sync 0;
  st.shared.u32 [%r7], %r18;
  bar.sync 0;
  .loc 1 50 1
  ld.shared.u32 %r19, [%r10];
  @%p1 st.global.u32 [%rd5], %r19;
  ret;
}
"""
)

# 128 threads, as one warpgroup: d (64, 8) = a (64, 16) b (8, 16)^T by wgmma, operands as they lie in `in`.
PRODUCT = (
    HEAD
    + """
.visible .entry product(.param .u64 out, .param .u64 in, .param .u64 a, .param .u64 b)
{
  .shared .align 1024 .b8 operands[16384];
  .reg .pred %p<9>;
  .reg .b32 %r<40>;
  .reg .f32 %f<9>;
  .reg .b64 %rd<20>;
  .loc 1 110 1
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  ld.param.u64 %rd3, [a];
  ld.param.u64 %rd4, [b];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 4;
  cvt.u64.u32 %rd5, %r2;
  add.s64 %rd6, %rd2, %rd5;
  mov.u32 %r3, operands;
  add.s32 %r3, %r3, %r2;
  mov.u32 %r4, 0;
$L_next:
  ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd6];
  st.shared.v4.u32 [%r3], {%r5, %r6, %r7, %r8};
  add.s64 %rd6, %rd6, 2048;
  add.s32 %r3, %r3, 2048;
  add.s32 %r4, %r4, 1;
  setp.lt.s32 %p1, %r4, 8;
  @%p1 bra $L_next;
  .loc 1 120 1
  fence.proxy.async.shared::cta;
  bar.sync 0;
  mov.pred %p2, 0;
  .loc 1 130 1
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f1, %f2, %f3, %f4}, %rd3, %rd4, %p2, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  .loc 1 140 1
  mul.wide.s32 %rd7, %r1, 16;
  add.s64 %rd8, %rd1, %rd7;
  st.global.v4.f32 [%rd8], {%f1, %f2, %f3, %f4};
  ret;
}
"""
)

# 32 threads: d (16, 8) = a (16, 16) b (16, 8), operands from shared memory by ldmatrix.
FRAGMENTS = (
    HEAD
    + """
.visible .entry fragments(.param .u64 out, .param .u64 in)
{
  .shared .align 128 .b8 operands[1024];
  .reg .b32 %r<40>;
  .reg .f32 %f<9>;
  .reg .b64 %rd<20>;
  .loc 1 210 1
  ld.param.u64 %rd1, [out];
  ld.param.u64 %rd2, [in];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 4;
  cvt.u64.u32 %rd5, %r2;
  add.s64 %rd6, %rd2, %rd5;
  mov.u32 %r3, operands;
  add.s32 %r4, %r3, %r2;
  ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd6];
  st.shared.v4.u32 [%r4], {%r5, %r6, %r7, %r8};
  ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd6+512];
  st.shared.v4.u32 [%r4+512], {%r5, %r6, %r7, %r8};
  bar.warp.sync -1;
  and.b32 %r9, %r1, 15;
  shl.b32 %r9, %r9, 5;
  and.b32 %r10, %r1, 16;
  add.s32 %r9, %r9, %r10;
  add.s32 %r9, %r9, %r3;
  and.b32 %r11, %r1, 15;
  shl.b32 %r11, %r11, 4;
  add.s32 %r11, %r11, %r3;
  .loc 1 220 1
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r12, %r13, %r14, %r15}, [%r9];
  ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r16, %r17}, [%r11+512];
  mov.f32 %f5, 0f00000000;
  .loc 1 230 1
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4},
    {%r12, %r13, %r14, %r15}, {%r16, %r17}, {%f5, %f5, %f5, %f5};
  mul.wide.s32 %rd7, %r1, 16;
  add.s64 %rd8, %rd1, %rd7;
  st.global.v4.f32 [%rd8], {%f1, %f2, %f3, %f4};
  ret;
}
"""
)

# 64 threads: the second warp hands a number to the first by an mbarrier, twice.
HANDING = (
    HEAD
    + """
.visible .entry handing(.param .u64 out)
{
  .shared .align 8 .b8 full[8];
  .shared .align 8 .b8 empty[8];
  .shared .align 128 .b8 value[128];
  .reg .pred %p<9>;
  .reg .b32 %r<40>;
  .reg .b64 %rd<20>;
  .loc 1 310 1
  ld.param.u64 %rd1, [out];
  mov.u32 %r1, %tid.x;
  and.b32 %r2, %r1, 31;
  shl.b32 %r3, %r2, 2;
  mov.u32 %r4, value;
  add.s32 %r4, %r4, %r3;
  mov.u32 %r5, full;
  mov.u32 %r6, empty;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 mbarrier.init.shared.b64 [%r5], 32;
  @%p1 mbarrier.init.shared.b64 [%r6], 32;
  bar.sync 0;
  mov.u32 %r7, 0;
  mov.u32 %r8, 0;
  setp.lt.u32 %p2, %r1, 32;
  @%p2 bra $L_take;
$L_give:
  .loc 1 320 1
  add.s32 %r9, %r2, %r7;
  st.shared.u32 [%r4], %r9;
  mbarrier.arrive.shared.b64 _, [%r5];
$L_until_empty:
  mbarrier.try_wait.parity.shared.b64 %p3, [%r6], %r7;
  @!%p3 bra $L_until_empty;
  add.s32 %r7, %r7, 1;
  setp.lt.u32 %p4, %r7, 2;
  @%p4 bra $L_give;
  ret;
$L_take:
  .loc 1 330 1
  mbarrier.try_wait.parity.shared.b64 %p3, [%r5], %r7;
  @!%p3 bra $L_take;
  ld.shared.u32 %r9, [%r4];
  add.s32 %r8, %r8, %r9;
  mbarrier.arrive.shared.b64 _, [%r6];
  add.s32 %r7, %r7, 1;
  setp.lt.u32 %p4, %r7, 2;
  @%p4 bra $L_take;
  mul.wide.u32 %rd2, %r2, 4;
  add.s64 %rd2, %rd1, %rd2;
  st.global.u32 [%rd2], %r8;
  ret;
}
"""
)
BARRIER = "  bar.sync 0;\n"


def launch(text, tensors, *numbers, grid=1, threads=64, architecture=90, orders=2):
    """Run the only kernel of ``text`` with the tensors' addresses, then 8-byte ``numbers``, as parameters."""
    (name,) = re.findall(r"\.entry (\w+)", text)
    values = struct.pack(f"<{len(tensors)}Q", *(t.data_ptr() for t in tensors))
    values += struct.pack(f"<{len(numbers)}q", *numbers)
    ranges = [
        host.Range(f"tensor {k}", t.data_ptr(), t.numel() * t.element_size()) for k, t in enumerate(tensors)
    ]
    return host.Launch(text, name, (grid, 1, 1), threads, 0, values, ranges, architecture).run(orders)


def plant(text, old, new, which=0):
    parts = text.split(old)
    assert len(parts) > which + 1, old
    return old.join(parts[: which + 1]) + new + old.join(parts[which + 1 :])
