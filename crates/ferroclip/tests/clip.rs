//! The front door: embedding, classification and their options.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ferroclip::{
    Classifier, Clip, Config, EmbedOptions, Error, Features, ImageSource, Picture, Scoring, init,
};

/// A small model that nobody trained, far from ties.
fn model() -> Clip {
    let mut config = Config::preset("draw-mini").expect("a preset");
    config.model.vision_cfg.layers = ferroclip::Layers::Stages([1; 4]);
    config.model.text_cfg.layers = 1;
    let weights = init(&config.model, 7);
    let tokenizer = config.new_tokenizer().expect("a tokenizer");
    Clip::from_parts(config, weights, tokenizer).expect("the parts fit")
}

fn pictures() -> Vec<Picture> {
    let picture = |k: usize| {
        let pixels = (0..80 * 70 * 3).map(|i| (i * (k + 3) / 7 % 251) as u8).collect();
        Picture::from_rgb8(80, 70, pixels)
    };
    (0..5).map(picture).collect()
}

#[test]
fn a_model_is_shared_between_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let clip = shared(model());
    let expected = clip.embed_texts(&["a cat"]).expect("embedded");
    std::thread::scope(|scope| {
        let run = || clip.embed_texts(&["a cat"]).expect("embedded");
        let threads = [scope.spawn(run), scope.spawn(run)];
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), expected);
        }
    });
}

#[test]
fn embeddings_are_unit_rows_whatever_the_batch() {
    let clip = model();
    let pictures = pictures();
    let sources: Vec<ImageSource<'_>> = pictures.iter().map(ImageSource::from).collect();
    let all = clip.embed_images(&pictures).expect("embedded");
    assert_eq!((all.rows, all.dim), (5, clip.config().model.embed_dim));
    for row in all.iter() {
        let norm: f32 = row.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
    }
    let seen = AtomicUsize::new(0);
    let progress = |n| seen.store(n, Ordering::Relaxed);
    let options = EmbedOptions { batch_size: 2, progress: Some(&progress), ..Default::default() };
    let batched = clip.embed_images_with(&sources, &options).expect("embedded");
    assert_eq!(batched.embeddings, all);
    assert_eq!(seen.into_inner(), 5);
    let raw = EmbedOptions { normalize: false, ..EmbedOptions::default() };
    let raw = clip.embed_images_with(&sources, &raw).expect("embedded").embeddings;
    let norm = raw.row(0).iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!((raw.row(0)[0] / norm - all.row(0)[0]).abs() < 1e-6);
}

#[test]
fn features_before_the_projection_are_not_normalised() {
    let clip = model();
    let (pictures, vision) = (pictures(), clip.config().model.vision_cfg.clone());
    let sources: Vec<ImageSource<'_>> = pictures.iter().map(ImageSource::from).collect();
    let pixels = clip.preprocess(&pictures[1], &EmbedOptions::default()).expect("a tensor");
    let tower = clip.image_tower();
    let cases = [
        (Features::Pooled, vision.pooled_width(), tower.pooled(&pixels, 1)),
        (Features::Patches, vision.grid_cells() * vision.pooled_width(), tower.patches(&pixels, 1)),
    ];
    for (features, dim, expected) in cases {
        let options = EmbedOptions { features, ..EmbedOptions::default() };
        let found = clip.embed_images_with(&sources, &options).expect("embedded").embeddings;
        assert_eq!((found.rows, found.dim), (5, dim));
        let expected: Vec<f32> = expected.into_data().try_into_vec().expect("f32");
        assert_eq!(found.row(1), expected);
    }
    let options = EmbedOptions { features: Features::Pooled, ..EmbedOptions::default() };
    let texts = clip.embed_texts_with(&["a cat"], &options).expect("embedded");
    assert_eq!((texts.rows, texts.dim), (1, clip.config().model.text_cfg.width));
    let options = EmbedOptions { features: Features::Patches, ..EmbedOptions::default() };
    let error = clip.embed_texts_with(&["a cat"], &options).expect_err("texts have none");
    assert_eq!(error.kind(), "input");
}

#[test]
fn bad_pictures_are_named_and_the_others_embedded() {
    let clip = model();
    let pictures = pictures();
    let folder = tempfile::tempdir().expect("a folder");
    let (absent, text) = (folder.path().join("absent.png"), folder.path().join("text.png"));
    std::fs::write(&text, "not a picture").expect("written");
    let sources = [
        ImageSource::from(&pictures[0]),
        ImageSource::from(&absent),
        ImageSource::Bytes(b""),
        ImageSource::from(&text),
        ImageSource::from(&pictures[1]),
    ];
    let result = clip.embed_images_with(&sources, &EmbedOptions::default()).expect("some work");
    assert_eq!(result.inputs, [0, 4]);
    assert_eq!(result.embeddings, clip.embed_images(&pictures[..2]).expect("embedded"));
    let errors: Vec<(usize, &str)> = result.failures.iter().map(|(i, e)| (*i, e.kind())).collect();
    assert_eq!(errors, [(1, "io"), (2, "image"), (3, "image")]);
    let error = clip.embed_images([&text]).expect_err("no picture");
    assert!(error.to_string().contains("text.png"), "{error}");
}

#[test]
fn a_raised_flag_ends_the_call() {
    let clip = model();
    let stop = AtomicBool::new(true);
    let options = EmbedOptions { stop: Some(&stop), ..EmbedOptions::default() };
    assert!(matches!(clip.embed_texts_with(&["a"], &options), Err(Error::Cancelled)));
}

#[test]
fn long_texts_are_cut_and_reported() {
    let clip = model();
    let long = "word ".repeat(100);
    let result = clip.embed_texts(&["short", &long]).expect("embedded");
    assert_eq!(result.truncated, [1]);
    let classifier = Classifier::new(&clip, &["a", "b", &long], &["{}", "the {}"]).expect("labels");
    assert_eq!(classifier.embeddings().truncated, [2]);
    assert_eq!(clip.embed_texts::<&str>(&[]).expect("nothing").rows, 0);
}

#[test]
fn scores_are_the_softmax_of_scaled_cosines() {
    let clip = model();
    let pictures = pictures();
    let labels = ["cat", "dog", "house", "tree"];
    let scores = clip.classify(&pictures[..1], &labels, 4).expect("classified").remove(0);
    let image = clip.embed_images(&pictures[..1]).expect("embedded");
    let texts: Vec<String> = labels.iter().map(|label| format!("a photo of a {label}.")).collect();
    let cosines = image.similarity(&clip.embed_texts(&texts).expect("embedded"));
    let scale = clip.logit_scale().exp();
    let sum: f32 = cosines.iter().map(|cosine| (scale * cosine).exp()).sum();
    for score in &scores {
        assert_eq!(score.label, labels[score.label_idx]);
        assert!((score.similarity - cosines[score.label_idx]).abs() < 1e-6);
        let expected = (scale * cosines[score.label_idx]).exp() / sum;
        assert!((score.score - expected).abs() < 1e-5, "{} {expected}", score.score);
    }
    assert!(scores.is_sorted_by(|a, b| a.similarity >= b.similarity));
    assert!((scores.iter().map(|score| score.score).sum::<f32>() - 1.0).abs() < 1e-5);
    assert_eq!(clip.classify(&pictures[..1], &labels, 2).expect("classified")[0], scores[..2]);
}

#[test]
fn several_templates_give_the_mean_of_unit_embeddings() {
    let clip = model();
    let templates = ["a photo of a {}.", "{}, a drawing of {}"];
    let labels: Vec<String> = (0..70).map(|i| format!("label {i}")).collect();
    let classifier = Classifier::new(&clip, &labels, &templates).expect("labels");
    assert_eq!(classifier.embeddings().rows, 70);
    let texts = ["a photo of a label 66.", "label 66, a drawing of label 66"];
    let texts = clip.embed_texts(&texts).expect("embedded");
    let mut mean: Vec<f32> =
        texts.row(0).iter().zip(texts.row(1)).map(|(a, b)| (a + b) / 2.0).collect();
    let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
    mean.iter_mut().for_each(|v| *v /= norm);
    for (a, b) in mean.iter().zip(classifier.embeddings().row(66)) {
        assert!((a - b).abs() < 1e-6);
    }
    let alone = classifier.with_scoring(Scoring::Sigmoid).classify(texts.row(0), 1).remove(0);
    let expected = 1.0 / (1.0 + (-clip.logit_scale().exp() * alone.similarity).exp());
    assert!((alone.score - expected).abs() < 1e-6);
}

#[test]
fn labels_and_templates_are_checked() {
    let clip = model();
    let none: [&str; 0] = [];
    let cases = [
        (Classifier::new(&clip, &none, &["{}"]), "the list of labels is empty"),
        (Classifier::new(&clip, &["a"], &none), "the list of templates is empty"),
        (Classifier::new(&clip, &["a"], &["{}", "a photo"]), "no `{}` for the label: `a photo`"),
    ];
    for (result, part) in cases {
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), "input");
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn the_builtin_model_opens() {
    let clip = Clip::builtin().expect("the built-in model");
    assert_eq!(clip.config().model.embed_dim, clip.embed_texts(&["a cat"]).expect("embedded").dim);
}
