//! Slabs that a device may read and write.

use super::{Device, Error};
use crate::slab::Slab;
use rdma_sys as ib;
use std::ptr::NonNull;
use std::rc::Rc;

/// A slab registered with a device. The pages are locked in memory until it is dropped.
pub struct Registration {
    region: NonNull<ib::ibv_mr>,
    // Below the region in drop order: the mapping and the device outlive the registration.
    slab: Slab,
    device: Rc<Device>,
}

impl Registration {
    /// # Errors
    /// `ENOMEM` when the limit on locked memory (`RLIMIT_MEMLOCK`) is too low.
    pub fn new(device: &Rc<Device>, slab: &Slab) -> Result<Rc<Self>, Error> {
        let (base, bytes) = slab.region();
        let access = ib::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0;
        // SAFETY: the range is one mapping, which the clone of the slab below keeps. The device
        // writes only where a queue pair has posted a buffer that it owns.
        let region = unsafe {
            ib::ibv_reg_mr(
                device.domain.as_ptr(),
                base.as_ptr().cast(),
                bytes,
                access.try_into().unwrap_or(1),
            )
        };
        let region = NonNull::new(region).ok_or_else(|| Error::last("ibv_reg_mr"))?;
        Ok(Rc::new(Self { region, slab: slab.clone(), device: Rc::clone(device) }))
    }

    #[must_use]
    pub fn slab(&self) -> &Slab {
        &self.slab
    }

    #[must_use]
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    pub(super) fn key(&self) -> u32 {
        // SAFETY: the region lives until this is dropped.
        unsafe { (*self.region.as_ptr()).lkey }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold an `Rc` of this while their buffers are posted.
        unsafe { ib::ibv_dereg_mr(self.region.as_ptr()) };
    }
}
