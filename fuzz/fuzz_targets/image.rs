//! An image may come from anywhere: decoding returns, and whatever it accepts can be shown.
#![no_main]

use crac_native::image::{decode, reseal};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    // Behind right checksums, or nothing behind them would ever be reached.
    let mut sealed = bytes.to_vec();
    reseal(&mut sealed);
    look(&sealed);
});

fn look(bytes: &[u8]) {
    let Ok(image) = decode(bytes) else { return };
    let shown = image.descriptors().count() + image.threads().count() + image.files().count();
    assert!(shown <= bytes.len(), "more is shown than the image has room for");
    assert!(image.data_bytes() <= image.file_bytes());
}
