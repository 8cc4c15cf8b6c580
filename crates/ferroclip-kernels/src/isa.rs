//! Which instruction set the kernels run on, decided once at run time.
//!
//! The environment variable `FERROCLIP_ISA` (`scalar`, `avx2`, `avx512`, `avx512vnni`, `avx512bf16`,
//! `amx`) forces a set that is lower than the best one present, so that tests can cover all of them on
//! one machine. A set that the processor lacks is never chosen.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use crate::amx;

/// An instruction set that this processor has.
///
/// A value is a proof of presence: values come only from [`Isa::active`] and
/// [`Isa::available`], which ask the processor first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(pub(crate) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL, which all servers with AVX-512 have.
    #[cfg(target_arch = "x86_64")]
    Avx512(Dots),
}

/// What an AVX-512 processor multiplies short numbers with.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dots {
    /// 16-bit integers at most.
    None,
    /// 8-bit integers as well.
    Vnni,
    /// bf16 as well.
    VnniBf16,
    /// Whole tiles of both as well.
    Amx,
}

#[cfg(target_arch = "x86_64")]
impl Dots {
    pub(crate) fn vnni(self) -> bool {
        self >= Dots::Vnni
    }

    pub(crate) fn bf16(self) -> bool {
        self >= Dots::VnniBf16
    }

    pub(crate) fn amx(self) -> bool {
        self >= Dots::Amx
    }
}

impl Isa {
    /// The set in use: the fastest one present, or the one that `FERROCLIP_ISA` names.
    pub fn active() -> Isa {
        static ACTIVE: OnceLock<Isa> = OnceLock::new();
        *ACTIVE.get_or_init(|| {
            let available = Isa::available();
            let wanted = std::env::var("FERROCLIP_ISA").unwrap_or_default();
            let forced = available.iter().copied().find(|isa| isa.name() == wanted);
            forced.unwrap_or_else(|| Isa::fastest(&available, slow_pairs()))
        })
    }

    /// The name that `FERROCLIP_ISA` holds, if it is none of this processor's sets: it forces nothing then.
    pub fn unknown_name() -> Option<String> {
        let wanted = std::env::var_os("FERROCLIP_ISA")?.to_string_lossy().into_owned();
        let is_known = |isa: &Isa| isa.name() == wanted;
        (!wanted.is_empty() && !Isa::available().iter().any(is_known)).then_some(wanted)
    }

    /// The highest of these sets, but for one whose products of bf16 are slower than those of f32.
    fn fastest(available: &[Isa], slow_pairs: bool) -> Isa {
        match available {
            #[cfg(target_arch = "x86_64")]
            [.., below, Isa(Level::Avx512(Dots::VnniBf16))] if slow_pairs => *below,
            [.., best] => *best,
            [] => Isa(Level::Scalar),
        }
    }

    /// All sets that this processor has, the lowest first. Never empty.
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "x86 pushes more"))]
        let mut sets = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if fma {
                sets.push(Isa(Level::Avx2));
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if fma && avx512 {
                sets.push(Isa(Level::Avx512(Dots::None)));
                if is_x86_feature_detected!("avx512vnni") {
                    sets.push(Isa(Level::Avx512(Dots::Vnni)));
                    if is_x86_feature_detected!("avx512bf16") {
                        sets.push(Isa(Level::Avx512(Dots::VnniBf16)));
                        if amx::present() {
                            sets.push(Isa(Level::Avx512(Dots::Amx)));
                        }
                    }
                }
            }
        }
        sets
    }

    /// The name that `FERROCLIP_ISA` takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(Dots::None) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(Dots::Vnni) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(Dots::VnniBf16) => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(Dots::Amx) => "amx",
        }
    }
}

/// Whether `vdpbf16ps` takes more than twice the time of a multiply-add of f32, which does half as much: so on
/// Intel's processors (0.6 of the rate of f32 measured on a Xeon of family 6/167), not on AMD's.
#[cfg(target_arch = "x86_64")]
fn slow_pairs() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn slow_pairs() -> bool {
    false
}

/// Multiply-add, fused where the instruction set has it. Generic loop bodies take it as a
/// parameter: `f32::mul_add` without hardware support would be a slow library call.
pub(crate) trait MulAdd: Copy {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Two roundings: for sets without a fused instruction.
#[derive(Clone, Copy)]
pub(crate) struct Unfused;
/// One rounding.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "x86 only today"))]
pub(crate) struct Fused;

impl MulAdd for Unfused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Writes a function that runs the `#[inline(always)]` body `$body` compiled for the instruction set
/// it is given; the compiler vectorises the body for each. `$body` is generic over its multiply-add,
/// or, where `unfused` stands behind it, has none.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $crate::isa::dispatch! {
            @each $(#[$meta])* $vis fn $name($($arg: $ty),*) $(-> $ret)?
                = $body::<$crate::isa::Unfused>, $body::<$crate::isa::Fused>
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident unfused) => {
        $crate::isa::dispatch! {
            @each $(#[$meta])* $vis fn $name($($arg: $ty),*) $(-> $ret)? = $body, $body
        }
    };
    (@each $(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $scalar:expr, $vector:expr) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $vector($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $vector($($arg),*)
            }
            match isa.0 {
                $crate::isa::Level::Scalar => $scalar($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` value proves that the processor has these features.
                $crate::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Level::Avx512(_) => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// A misspelt name would let tests pass on another set than the one they are run for.
    #[test]
    fn a_forced_set_is_known() {
        assert_eq!(Isa::unknown_name(), None);
    }

    #[test]
    fn slow_products_of_bf16_are_passed_over() {
        let sets = [Dots::None, Dots::Vnni, Dots::VnniBf16, Dots::Amx];
        let sets = sets.map(|dots| Isa(Level::Avx512(dots)));
        assert_eq!(Isa::fastest(&sets[..3], true), sets[1]);
        assert_eq!(Isa::fastest(&sets[..3], false), sets[2]);
        assert_eq!(Isa::fastest(&sets, true), sets[3]);
        assert_eq!(Isa::fastest(&sets[..2], true), sets[1]);
    }
}
