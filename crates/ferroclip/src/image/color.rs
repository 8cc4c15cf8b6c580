//! Colour jitter on 8-bit RGB, with the arithmetic of PIL's `ImageEnhance` and of torchvision's
//! `adjust_hue`.

/// PIL's grey of a colour: ITU-R 601-2 luma with 16 fractional bits.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((19_595 * r + 38_470 * g + 7_471 * b + 0x8000) >> 16) as u8
}

/// PIL's `Image.blend`: from `degenerate` (factor 0) to `value` (factor 1) and beyond.
fn blend(degenerate: u8, value: u8, factor: f32) -> u8 {
    let [from, to] = [degenerate, value].map(i32::from);
    // `as` cuts the fraction and saturates at both ends, as PIL does beyond 0..1.
    (from as f32 + factor * (to - from) as f32) as u8
}

/// Factor 0 is black, 1 the picture as it is.
pub(super) fn adjust_brightness(pixels: &mut [u8], factor: f32) {
    pixels.iter_mut().for_each(|v| *v = blend(0, *v, factor));
}

/// Factor 0 is the picture's mean grey, 1 the picture as it is.
pub(super) fn adjust_contrast(pixels: &mut [u8], factor: f32) {
    let n_pixels = (pixels.len() / 3).max(1);
    let sum: u64 = pixels.chunks_exact(3).map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / n_pixels as f64 + 0.5) as u8;
    pixels.iter_mut().for_each(|v| *v = blend(mean, *v, factor));
}

/// Factor 0 is grey, 1 the picture as it is.
pub(super) fn adjust_saturation(pixels: &mut [u8], factor: f32) {
    for pixel in pixels.chunks_exact_mut(3) {
        let grey = luma(pixel);
        pixel.iter_mut().for_each(|v| *v = blend(grey, *v, factor));
    }
}

/// Turns every hue by `turns` of the colour circle, -0.5 to 0.5, in steps of 1/255.
pub(super) fn adjust_hue(pixels: &mut [u8], turns: f64) {
    let shift = (turns * 255.0) as i32 as u8;
    for pixel in pixels.chunks_exact_mut(3) {
        let [h, s, v] = rgb_to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&hsv_to_rgb([h.wrapping_add(shift), s, v]));
    }
}

/// Replaces every colour by its grey.
pub(super) fn to_grey(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.fill(luma(pixel));
    }
}

/// PIL's `HSV`: each of the three in 0..=255, cut to integers.
fn rgb_to_hsv(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb;
    let [high, low] = [r.max(g).max(b), r.min(g).min(b)];
    if high == low {
        return [0, 0, high];
    }
    let range = f32::from(high - low);
    let [rc, gc, bc] = rgb.map(|v| f32::from(high - v) / range);
    // PIL adds the constant in double precision and stores single.
    let sixths = if r == high {
        bc - gc
    } else if g == high {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let turns = f64::from(sixths) / 6.0 + 1.0;
    let hue = (if turns < 1.0 { turns } else { turns - 1.0 }) as f32;
    let saturation = range / f32::from(high);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, high]
}

fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixths = (f64::from(h) * 6.0 / 255.0) as f32;
    let saturation = (f64::from(s) / 255.0) as f32;
    let sector = sixths as u8;
    let [fraction, saturation] = [sixths - f32::from(sector), saturation].map(f64::from);
    let level = |share: f64| (f64::from(v) * (1.0 - share) + 0.5) as u8;
    let p = level(saturation);
    let q = level(saturation * fraction);
    let t = level(saturation * (1.0 - fraction));
    match sector % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
