//! Windows of images as rows: a convolution of them is a linear layer.

/// Where the windows of an image lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfold {
    /// Height and width of an image.
    pub(super) image: [usize; 2],
    /// Height and width of a window.
    pub(super) kernel: [usize; 2],
    /// Distance between windows, down and across.
    pub(super) stride: [usize; 2],
    /// Zeros around the image.
    pub(super) border: usize,
}

impl Unfold {
    /// Windows down and across.
    fn grid(&self) -> [usize; 2] {
        let count =
            |i: usize| (self.image[i] + 2 * self.border - self.kernel[i]) / self.stride[i] + 1;
        [count(0), count(1)]
    }

    /// Windows of an image.
    pub(super) fn cells(&self) -> usize {
        let [rows, columns] = self.grid();
        rows * columns
    }

    /// Numbers of a window.
    pub(super) fn len(&self) -> usize {
        3 * self.kernel[0] * self.kernel[1]
    }

    /// # Panics
    /// When these are not the pixels of `n` images.
    pub(super) fn check(&self, pixels: &[f32], n: usize) {
        assert_eq!(pixels.len(), n * 3 * self.image[0] * self.image[1], "pixels of {n} images");
    }

    /// Writes a window of an image of `pixels`, in the order of the convolution's weight: channel, row, column.
    pub(super) fn write(&self, pixels: &[f32], image: usize, cell: usize, out: &mut [f32]) {
        let ([height, width], across) = (self.image, self.grid()[1]);
        assert!(cell < self.cells(), "window {cell} of {}", self.cells());
        let corner = [cell / across * self.stride[0], cell % across * self.stride[1]];
        let planes = pixels[image * 3 * height * width..].chunks_exact(height * width);
        for (plane, out) in planes.zip(out.chunks_exact_mut(self.kernel[0] * self.kernel[1])) {
            self.window(plane, corner, out);
        }
    }

    /// The window of a plane whose corner is here, counted with the border.
    fn window(&self, plane: &[f32], [top, left]: [usize; 2], out: &mut [f32]) {
        let ([height, width], across, border) = (self.image, self.kernel[1], self.border);
        // Columns that are inside, counted with the border.
        let (from, to) = (left.max(border), (left + across).min(width + border));
        for (y, out) in (top..).zip(out.chunks_exact_mut(across)) {
            if !(border..height + border).contains(&y) || from >= to {
                out.fill(0.0);
                continue;
            }
            let row = &plane[(y - border) * width..][..width];
            out[..from - left].fill(0.0);
            out[from - left..to - left].copy_from_slice(&row[from - border..to - border]);
            out[to - left..].fill(0.0);
        }
    }
}
