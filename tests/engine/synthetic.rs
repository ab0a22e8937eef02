//! Models with random weights in well-known shapes load and run like any other.

use bitnetd::engine::synthetic;
use bitnetd::engine::{EngineOptions, ModelFile, Source};

#[test]
fn every_shape_is_one_the_engine_reads_and_ternary_throughout() {
    for known in synthetic::ALL {
        // The whole would take gigabytes; one layer has every kind of matrix.
        let source = Source::Random(known.truncated(1, 300));
        let engine = ModelFile::open(&source, None)
            .and_then(|file| file.load(&EngineOptions { threads: 1, ..EngineOptions::default() }))
            .expect(known.name);
        assert_eq!(engine.model().float_matrices(), 0, "{}", known.name);
        let mut finite = true;
        let each = |_, logits: &[f32]| finite &= logits.iter().all(|x| x.is_finite());
        engine.session(4).logits(&[1, 2, 299], each).expect("fits");
        assert!(finite, "{}", known.name);
    }
}
