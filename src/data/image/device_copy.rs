//! A copy of a set of images in the memory of a GPU.

use crate::ops::image_batch::ImageTable;
use candle_core::{Device, DeviceLocation, Result};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The copy of the images on the device of the last batch, if they have been copied there.
///
/// The copy does not take part in equality, and a cloned set starts without one.
#[derive(Default)]
pub(super) struct DeviceCopy(Mutex<Option<(DeviceLocation, Option<Arc<ImageTable>>)>>);

impl DeviceCopy {
    /// Returns the copy on `device`. The first call makes it with `copy`, which may return `None`.
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

    /// Drops the copy, because the images have changed.
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
