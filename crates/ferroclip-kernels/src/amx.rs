//! AMX: products of whole tiles, 16 rows of 64 bytes each, in registers of their own.
//!
//! The standard library has no stable intrinsics for them, so they are assembly here. Linux wants to be asked
//! before a process uses the registers, and their shapes are set for each thread.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Groups of 4 bytes in a row of a tile.
pub(crate) const GROUPS: usize = 16;

/// Whether the processor has tiles of this shape for bf16 and 8-bit integers, and the system lets this process
/// use them.
pub(crate) fn present() -> bool {
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // Palette 1: bytes of a tile and all tiles; bytes of a row and tiles; rows.
    const SHAPE: [u32; 3] = [1024 << 16 | 8192, 8 << 16 | 64, 16];
    if __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    [palette.eax, palette.ebx, palette.ecx & 0xffff] == SHAPE && permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for the permission to use registers; touches no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tile registers of this thread, all of [`ROWS`] x [`GROUPS`]; given back when it is dropped, as the
/// system saves them at every change of threads until then.
#[derive(Debug)]
pub(crate) struct Tiles(PhantomData<*const ()>);

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Sets their shapes.
    ///
    /// # Safety
    /// [`present`].
    pub(crate) unsafe fn new() -> Tiles {
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(4 * GROUPS as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: the caller vouches for the instruction, which reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` exists where the instruction does.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Two tiles of columns that go through k with one or two tiles of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Tiles along k; not 0.
    pub(crate) depth: usize,
    /// `[depth][ROWS][GROUPS]`, for one tile of rows and the next.
    pub(crate) a: [*const u32; 2],
    /// `[depth][GROUPS][2 ROWS]`.
    pub(crate) b: *const u32,
    /// `[tiles of rows][ROWS][2 ROWS]`.
    pub(crate) sums: *mut u32,
    /// Whether the sums go on from what is there.
    pub(crate) resume: bool,
    /// What will be wanted soon; an address that need not be valid.
    pub(crate) next: *const u8,
    /// Bytes between two prefetches.
    pub(crate) step: usize,
}

/// Prefetches for each tile of k.
pub(crate) const PREFETCHES: usize = 4;

macro_rules! products {
    ($two:ident, $one:ident, $dot:literal) => {
        /// Two tiles of rows.
        ///
        /// # Safety
        /// The shapes are set; the pointers hold what [`Block`] says.
        pub(crate) unsafe fn $two(_: &Tiles, block: &Block) {
            // SAFETY: the caller vouches for the operands; prefetching touches nothing.
            unsafe {
                asm!(
                    "test {resume:e}, {resume:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{c} + {columns}*1]",
                    "tileloadd tmm1, [{c} + {columns}*1 + 64]",
                    "tileloadd tmm2, [{c} + {columns}*1 + 2048]",
                    "tileloadd tmm3, [{c} + {columns}*1 + 2112]",
                    "3:",
                    "tileloadd tmm4, [{a0} + {line}*1]",
                    "tileloadd tmm6, [{b} + {columns}*1]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {columns}*1 + 64]",
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{a1} + {line}*1]",
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    concat!($dot, " tmm2, tmm5, tmm6"),
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    concat!($dot, " tmm3, tmm5, tmm7"),
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b}, 2048",
                    "dec {depth}",
                    "jnz 3b",
                    "tilestored [{c} + {columns}*1], tmm0",
                    "tilestored [{c} + {columns}*1 + 64], tmm1",
                    "tilestored [{c} + {columns}*1 + 2048], tmm2",
                    "tilestored [{c} + {columns}*1 + 2112], tmm3",
                    resume = in(reg) u32::from(block.resume),
                    c = in(reg) block.sums,
                    columns = in(reg) 8 * ROWS,
                    line = in(reg) 4 * GROUPS,
                    a0 = inout(reg) block.a[0] => _,
                    a1 = inout(reg) block.a[1] => _,
                    b = inout(reg) block.b => _,
                    next = inout(reg) block.next => _,
                    step = in(reg) block.step,
                    depth = inout(reg) block.depth => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }

        /// One tile of rows.
        ///
        /// # Safety
        /// The shapes are set; the pointers hold what [`Block`] says.
        pub(crate) unsafe fn $one(_: &Tiles, block: &Block) {
            // SAFETY: the caller vouches for the operands; prefetching touches nothing.
            unsafe {
                asm!(
                    "test {resume:e}, {resume:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{c} + {columns}*1]",
                    "tileloadd tmm1, [{c} + {columns}*1 + 64]",
                    "3:",
                    "tileloadd tmm4, [{a0} + {line}*1]",
                    "tileloadd tmm6, [{b} + {columns}*1]",
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {columns}*1 + 64]",
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "prefetcht1 [{next}]",
                    "add {next}, {step}",
                    "add {a0}, 1024",
                    "add {b}, 2048",
                    "dec {depth}",
                    "jnz 3b",
                    "tilestored [{c} + {columns}*1], tmm0",
                    "tilestored [{c} + {columns}*1 + 64], tmm1",
                    resume = in(reg) u32::from(block.resume),
                    c = in(reg) block.sums,
                    columns = in(reg) 8 * ROWS,
                    line = in(reg) 4 * GROUPS,
                    a0 = inout(reg) block.a[0] => _,
                    b = inout(reg) block.b => _,
                    next = inout(reg) block.next => _,
                    step = in(reg) block.step,
                    depth = inout(reg) block.depth => _,
                    out("tmm0") _, out("tmm1") _, out("tmm4") _,
                    out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

products!(two_bf16, one_bf16, "tdpbf16ps");
products!(two_int8, one_int8, "tdpbssd");

/// Two tiles of columns that go through k with one or two tiles of rows, of numbers in three parts. The products are added
/// in one order whatever the number of tiles is, that which loads the fewest: (1, 1), (1, 3), (1, 2), (2, 2), (2, 1), (3, 1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Tiles along k; not 0.
    pub(crate) depth: usize,
    /// `[depth][part][ROWS][GROUPS]`, for one tile of rows and the next.
    pub(crate) a: [*const u32; 2],
    /// `[depth][part][GROUPS][ROWS]`, for each tile of columns.
    pub(crate) b: [*const u32; 2],
    /// `[tiles of rows][ROWS][2 ROWS]`.
    pub(crate) sums: *mut u32,
    /// Whether the sums go on from what is there.
    pub(crate) resume: bool,
    /// What is fetched for later, [`SPLIT_AHEAD`] bytes for each tile of k; an address that need not be valid.
    pub(crate) next: *const u8,
}

/// Bytes that are fetched for each tile of k of numbers in three parts.
pub(crate) const SPLIT_AHEAD: usize = 768;

/// One tile of rows, two of columns.
///
/// # Safety
/// The shapes are set; the pointers hold what [`Split`] says.
pub(crate) unsafe fn split_one(_: &Tiles, block: &Split) {
    // SAFETY: the caller vouches for the operands; prefetching touches nothing.
    unsafe {
        asm!(
            "test {resume:e}, {resume:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {columns}*1]",
            "tileloadd tmm1, [{c} + {columns}*1 + 64]",
            "3:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next}]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 64]",
            "tileloadd tmm6, [{b0} + {line}*1 + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next} + 128]",
            "tileloadd tmm7, [{b1} + {line}*1 + 2048]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 192]",
            "tileloadd tmm6, [{b0} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next} + 256]",
            "tileloadd tmm7, [{b1} + {line}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 320]",
            "tileloadd tmm4, [{a0} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next} + 384]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 448]",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next} + 512]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 576]",
            "tileloadd tmm4, [{a0} + {line}*1 + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next} + 640]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 704]",
            "add {next}, 768",
            "add {a0}, 3072",
            "add {b0}, 3072",
            "add {b1}, 3072",
            "dec {depth}",
            "jnz 3b",
            "tilestored [{c} + {columns}*1], tmm0",
            "tilestored [{c} + {columns}*1 + 64], tmm1",
            resume = in(reg) u32::from(block.resume),
            c = in(reg) block.sums,
            columns = in(reg) 8 * ROWS,
            line = in(reg) 4 * GROUPS,
            a0 = inout(reg) block.a[0] => _,
            b0 = inout(reg) block.b[0] => _,
            b1 = inout(reg) block.b[1] => _,
            next = inout(reg) block.next => _,
            depth = inout(reg) block.depth => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Two tiles of rows and of columns: fourteen are loaded for 24 products.
///
/// # Safety
/// The shapes are set; the pointers hold what [`Split`] says.
pub(crate) unsafe fn split_two(_: &Tiles, block: &Split) {
    // SAFETY: the caller vouches for the operands; prefetching touches nothing.
    unsafe {
        asm!(
            "test {resume:e}, {resume:e}",
            "jnz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {columns}*1]",
            "tileloadd tmm1, [{c} + {columns}*1 + 64]",
            "tileloadd tmm2, [{c} + {columns}*1 + 2048]",
            "tileloadd tmm3, [{c} + {columns}*1 + 2112]",
            "3:",
            "tileloadd tmm4, [{a0} + {line}*1]",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next}]",
            "tileloadd tmm5, [{a1} + {line}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 64]",
            "tileloadd tmm6, [{b0} + {line}*1 + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{next} + 128]",
            "tileloadd tmm7, [{b1} + {line}*1 + 2048]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 192]",
            "tileloadd tmm6, [{b0} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{next} + 256]",
            "tileloadd tmm7, [{b1} + {line}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 320]",
            "tileloadd tmm4, [{a0} + {line}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 384]",
            "tileloadd tmm5, [{a1} + {line}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 448]",
            "tileloadd tmm6, [{b0} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{next} + 512]",
            "tileloadd tmm7, [{b1} + {line}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 576]",
            "tileloadd tmm4, [{a0} + {line}*1 + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 640]",
            "tileloadd tmm5, [{a1} + {line}*1 + 2048]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 704]",
            "add {next}, 768",
            "add {a0}, 3072",
            "add {a1}, 3072",
            "add {b0}, 3072",
            "add {b1}, 3072",
            "dec {depth}",
            "jnz 3b",
            "tilestored [{c} + {columns}*1], tmm0",
            "tilestored [{c} + {columns}*1 + 64], tmm1",
            "tilestored [{c} + {columns}*1 + 2048], tmm2",
            "tilestored [{c} + {columns}*1 + 2112], tmm3",
            resume = in(reg) u32::from(block.resume),
            c = in(reg) block.sums,
            columns = in(reg) 8 * ROWS,
            line = in(reg) 4 * GROUPS,
            a0 = inout(reg) block.a[0] => _,
            a1 = inout(reg) block.a[1] => _,
            b0 = inout(reg) block.b[0] => _,
            b1 = inout(reg) block.b[1] => _,
            next = inout(reg) block.next => _,
            depth = inout(reg) block.depth => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
