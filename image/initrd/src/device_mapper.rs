//! One mapped device with one target (linux/dm-ioctl.h; Documentation/admin-guide/device-mapper).

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::fault::{Context, Result, WRONG_IMAGE};

/// Makes a read-only device of that many sectors of 512 bytes and returns its name in `/dev`.
///
/// # Errors
/// When the target refuses its parameters: the kernel's log, on the same console, says why.
pub fn create(name: &str, sectors: u64, target: &str, parameters: &str, mend: &'static str) -> Result<String> {
    let control = File::options().read(true).write(true).open(CONTROL).or_fault(CONTROL, WRONG_IMAGE)?;
    let mut created = Request::new(name);
    let what = format!("device {name}");
    // SAFETY: a request is as long as its `data_size` says, and the kernel writes no more than that.
    unsafe { dm_dev_create(control.as_raw_fd(), (&raw mut created).cast()) }.or_fault(&what, WRONG_IMAGE)?;

    let mut table = Request::new(name);
    table.load(sectors, target, parameters);
    // SAFETY: as above.
    unsafe { dm_table_load(control.as_raw_fd(), (&raw mut table).cast()) }
        .or_fault(&format!("{what}: {target}"), mend)?;
    // A device that is "suspended" without the flag to suspend starts with its new table.
    let mut resumed = Request::new(name);
    // SAFETY: as above.
    unsafe { dm_dev_suspend(control.as_raw_fd(), (&raw mut resumed).cast()) }.or_fault(&what, mend)?;
    // The minor number is in bits 0–7 and 20–31 (new_encode_dev in the kernel).
    let minor = (created.header.device & 0xff) | (created.header.device >> 12 & 0xfff00);
    Ok(format!("/dev/dm-{minor}"))
}

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_number: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// What goes to the kernel: the header, `struct dm_target_spec` and its parameters.
#[repr(C)]
struct Request {
    header: Header,
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target: [u8; 16],
    parameters: [u8; PARAMETERS],
}

impl Request {
    fn new(name: &str) -> Request {
        let header = Header {
            version: [4, 0, 0],
            data_size: size_of::<Request>() as u32,
            data_start: size_of::<Header>() as u32,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_number: 0,
            padding: 0,
            device: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        };
        let mut request = Request {
            header,
            sector_start: 0,
            length: 0,
            status: 0,
            next: 0,
            target: [0; 16],
            parameters: [0; PARAMETERS],
        };
        copy(name, &mut request.header.name);
        request
    }

    fn load(&mut self, sectors: u64, target: &str, parameters: &str) {
        self.header.flags = DM_READONLY_FLAG;
        self.header.target_count = 1;
        self.length = sectors;
        copy(target, &mut self.target);
        copy(parameters, &mut self.parameters);
    }
}

/// As a C string; our own words are all shorter than the fields.
fn copy(text: &str, field: &mut [u8]) {
    assert!(text.len() < field.len(), "{text:?} does not fit into {} bytes", field.len());
    field[..text.len()].copy_from_slice(text.as_bytes());
}

// The numbers carry the length of `struct dm_ioctl` alone.
nix::ioctl_readwrite!(dm_dev_create, 0xfd, 3, Header);
nix::ioctl_readwrite!(dm_dev_suspend, 0xfd, 6, Header);
nix::ioctl_readwrite!(dm_table_load, 0xfd, 9, Header);

const CONTROL: &str = "/dev/mapper/control";
const DM_READONLY_FLAG: u32 = 1;
/// A table line of dm-verity takes about 300 bytes.
const PARAMETERS: usize = 1024;
