#![no_main]

use std::panic::set_hook;
use std::sync::Once;

static BEGIN: Once = Once::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // libFuzzer's hook ends the process at a panic that ferroclip catches: those of the `tokenizers` crate. One that
    // is not caught ends it all the same.
    BEGIN.call_once(|| set_hook(Box::new(|_| ())));
    let _ = (ferroclip_hostile::parser("tokenizer").feed)(bytes);
});
