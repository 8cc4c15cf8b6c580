//! Resizing a picture in its own pixel format, then RGB: the order of PIL and torchvision.

use std::borrow::Cow;
use std::ops::Range;

use ferroclip_kernels::Isa;
use ferroclip_kernels::resample::{Axis, Filter, Scratch, nearest, resample};

use super::picture::{Mode, Picture, scale_255};

/// Resizes the picture to `width` x `height` and returns the RGB samples of the window
/// `columns` x `rows` of it. Only the window is computed.
pub(super) fn resize_to_rgb(
    picture: Cow<'_, Picture>,
    [width, height]: [usize; 2],
    [columns, rows]: [Range<usize>; 2],
    filter: Filter,
) -> Vec<u8> {
    let whole = [columns.clone(), rows.clone()] == [0..picture.width(), 0..picture.height()];
    if [width, height] == [picture.width(), picture.height()] {
        // PIL copies: alpha is not multiplied in and out again.
        if whole {
            return picture.to_rgb(picture.pixels());
        }
        let part = picture.crop([columns.start, rows.start, columns.len(), rows.len()]);
        return picture.to_rgb(part.pixels());
    }
    if matches!(picture.mode(), Mode::Bilevel | Mode::Palette) {
        let x = nearest(picture.width(), width, columns).collect::<Vec<_>>();
        let y = nearest(picture.height(), height, rows);
        let (source, columns) = (picture.pixels(), picture.width());
        let row = |y: Option<usize>| {
            let pick = move |x: Option<usize>| Some(source[y? * columns + x?]);
            x.iter().map(move |&x| pick(x).unwrap_or(0))
        };
        return picture.to_rgb(&y.flat_map(row).collect::<Vec<_>>());
    }
    let axes = [
        Axis::new(picture.width(), width).window(columns),
        Axis::new(picture.height(), height).window(rows),
    ];
    let mode = picture.mode();
    let samples = resize_samples(picture, &axes, filter);
    let small = Picture::new(axes[0].output(), axes[1].output(), mode, samples);
    small.to_rgb(small.pixels())
}

/// Resizes grey, RGB, CMYK as they are and alpha formats premultiplied; the format stays.
pub(super) fn resize_samples(
    picture: Cow<'_, Picture>,
    axes: &[Axis; 2],
    filter: Filter,
) -> Vec<u8> {
    let channels = picture.mode().channels();
    let mut out = vec![0; axes[0].output() * axes[1].output() * channels];
    let mut run = |source: &[u8]| {
        let scratch = &mut Scratch::default();
        resample(Isa::active(), source, channels, [&axes[0], &axes[1]], filter, scratch, &mut out);
    };
    match picture.mode() {
        Mode::La | Mode::Rgba => {
            run(&premultiplied(picture.into_owned().into_pixels(), channels));
            unmultiply(&mut out, channels);
        }
        _ => run(picture.pixels()),
    }
    out
}

/// PIL's `LA` to `La` and `RGBA` to `RGBa`: the last channel is alpha.
pub(super) fn premultiplied(mut pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    for pixel in pixels.chunks_exact_mut(channels) {
        if let Some((&mut alpha, colors)) = pixel.split_last_mut()
            && alpha != 255
        {
            colors.iter_mut().for_each(|v| *v = scale_255(*v, alpha));
        }
    }
    pixels
}

/// PIL's way back; colour without any alpha stays as it is.
pub(super) fn unmultiply(pixels: &mut [u8], channels: usize) {
    for pixel in pixels.chunks_exact_mut(channels) {
        if let Some((&mut alpha @ 1..=254, colors)) = pixel.split_last_mut() {
            let divide = |v: u8| (255 * u32::from(v) / u32::from(alpha)).min(255) as u8;
            colors.iter_mut().for_each(|v| *v = divide(*v));
        }
    }
}
