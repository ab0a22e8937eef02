//! The model inside the binary: `home-intents`, whose card is `models/README.md`.

/// Puts bytes on the boundary that the tensors of a mapped file would have.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/home-intents.i2_s.gguf"));

/// Its name in messages.
pub(super) const NAME: &str = "built-in model";

/// Its bytes, parsed in place.
pub(super) fn bytes() -> &'static [u8] {
    &MODEL.0
}
