//! Any text is a bundle, or has mistakes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match enforcer_bundle::parse(&[("fuzz.yaml".into(), text.to_owned())]) {
        Ok(bundle) => assert!(bundle.metadata.version > 0),
        Err(mistakes) => assert!(!mistakes.0.is_empty()),
    }
});
