#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = (ferroclip_hostile::parser("tar").feed)(bytes);
});
