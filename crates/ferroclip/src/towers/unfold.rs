//! Windows of images as rows: a convolution of them is a linear layer.

use burn::prelude::*;
use burn::tensor::TensorData;

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

    /// A row for each window of each image.
    pub(super) fn all(&self, pixels: &[f32], n: usize, device: &Device) -> Tensor<2> {
        let cells = (0..n).flat_map(|i| (0..self.cells()).map(move |cell| (i, cell)));
        self.chosen(pixels, n, cells, device)
    }

    /// A row for each (image, window), in the order of the convolution's weight: channel, row,
    /// column.
    pub(super) fn chosen(
        &self,
        pixels: &[f32],
        n: usize,
        cells: impl Iterator<Item = (usize, usize)>,
        device: &Device,
    ) -> Tensor<2> {
        let [height, width] = self.image;
        assert_eq!(pixels.len(), n * 3 * height * width, "pixels of {n} images");
        let (of_image, across) = (self.cells(), self.grid()[1]);
        let len = 3 * self.kernel[0] * self.kernel[1];
        let mut rows = Vec::with_capacity(n * of_image * len);
        for (i, cell) in cells {
            assert!(cell < of_image, "window {cell} of {of_image}");
            let corner = [cell / across * self.stride[0], cell % across * self.stride[1]];
            for c in 0..3 {
                let plane = &pixels[(i * 3 + c) * height * width..][..height * width];
                self.window(plane, corner, &mut rows);
            }
        }
        let n_rows = rows.len() / len;
        Tensor::from_data(TensorData::new(rows, [n_rows, len]), device)
    }

    /// The window of a plane whose corner is here, counted with the border.
    fn window(&self, plane: &[f32], [top, left]: [usize; 2], out: &mut Vec<f32>) {
        let ([height, width], [down, across], border) = (self.image, self.kernel, self.border);
        for y in top..top + down {
            // Columns that are inside, counted with the border.
            let (from, to) = (left.max(border), (left + across).min(width + border));
            if !(border..height + border).contains(&y) || from >= to {
                out.resize(out.len() + across, 0.0);
                continue;
            }
            out.resize(out.len() + from - left, 0.0);
            let row = &plane[(y - border) * width..][..width];
            out.extend_from_slice(&row[from - border..to - border]);
            out.resize(out.len() + left + across - to, 0.0);
        }
    }
}
