//! A copy of a set of images in the memory of a GPU.

use crate::ops::image_batch::ImageTable;
use candle_core::{Device, DeviceLocation, Result};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The copy of the images on the device of the last batch, if they have been copied there.
///
/// It is no part of the set's value: it counts as equal to any other, and a clone of a set starts without a copy.
#[derive(Default)]
pub(super) struct DeviceCopy(Mutex<Option<(DeviceLocation, Option<Arc<ImageTable>>)>>);

impl DeviceCopy {
    /// Returns the copy on `device`, made by `copy` the first time; `None` if `copy` has made none.
    pub fn on(
        &self,
        device: &Device,
        copy: impl FnOnce() -> Result<Option<ImageTable>>,
    ) -> Result<Option<Arc<ImageTable>>> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((location, table)) if *location == device.location() => Ok(table.clone()),
            _ => {
                let table = copy()?.map(Arc::new);
                *held = Some((device.location(), table.clone()));
                Ok(table)
            }
        }
    }

    /// Drops the copy of images that have changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Clone for DeviceCopy {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for DeviceCopy {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for DeviceCopy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("DeviceCopy")
    }
}

#[cfg(all(test, feature = "cuda-emulator"))]
mod tests {
    use crate::data::{Augmentation, Images, Normalisation, PhotoAugmentation};
    use crate::ops::emulator;
    use candle_core::{Device, Result, Tensor};

    /// Seven images of shape (3, 5, 6).
    fn images() -> Result<Images> {
        Images::new(
            (0..7 * 90).map(|at| (at * 37 % 251) as u8).collect(),
            vec![3_u8, 1, 4, 1, 5, 0, 2],
            (3, 5, 6),
            6,
        )
    }

    fn assert_same(make: impl Fn(&Images) -> Result<(Tensor, Tensor)>) -> Result<()> {
        let mut images = images()?;
        for normalised in [false, true] {
            if normalised {
                images.normalise(Normalisation::imagenet())?;
            }
            let (xs, labels) = make(&images)?;
            let (expected, expected_labels) = emulator::off(|| make(&images))?;
            assert_eq!(xs.dims(), expected.dims());
            assert_eq!(xs.flatten_all()?.to_vec1::<f32>()?, expected.flatten_all()?.to_vec1::<f32>()?);
            assert_eq!(labels.to_vec1::<u32>()?, expected_labels.to_vec1::<u32>()?);
        }
        Ok(())
    }

    #[test]
    fn batches_made_on_a_gpu_equal_those_of_the_host_to_the_bit() -> Result<()> {
        assert_same(|images| images.batch(&[6, 0, 3], &Device::Cpu))?;
        assert_same(|images| images.batch(&[], &Device::Cpu))?;
        let far = PhotoAugmentation { pad: 8, ..PhotoAugmentation::default() };
        for augmentation in [Augmentation::Shifts, Augmentation::Photo(far)] {
            for epoch in 0..20 {
                let all = [0, 1, 2, 3, 4, 5, 6];
                assert_same(|images| images.augmented_batch(&all, &augmentation, 3, epoch, &Device::Cpu))?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_batch_takes_one_launch_and_one_copy() -> Result<()> {
        let images = images()?;
        images.batch(&[0], &Device::Cpu)?;
        let (batch, counts) =
            emulator::count(|| images.augmented_batch(&[5, 2], &Augmentation::Shifts, 3, 1, &Device::Cpu));
        batch?;
        assert_eq!((counts.launches, counts.to_device, counts.waits), (1, 1, 0));
        Ok(())
    }
}
