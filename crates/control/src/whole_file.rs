//! A file that somebody else wrote, read whole: a regular one, and up to a length that its reader names. A FIFO or a device
//! in its place would hold the control thread for as long as its other end likes, and a file without end fill its memory.

use std::{
    fs::{Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// What a file holds.
///
/// # Errors
/// What the kernel said; [`io::ErrorKind::InvalidInput`] when it is no regular file, and [`io::ErrorKind::FileTooLarge`] when
/// it is longer than `bytes_max`.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_if(path, bytes_max, |_| Ok(()))
}

/// What a file holds, as a text.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] when it is not UTF-8.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What a file holds, if its owner and mode are to `accept`'s liking.
///
/// # Errors
/// As [`read`], and those of `accept`.
pub(crate) fn read_if<E: From<io::Error>>(
    path: &Path,
    bytes_max: u64,
    accept: impl FnOnce(&Metadata) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    // Opening a FIFO waits for its other end, unless it is told not to.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file").into());
    }
    accept(&metadata)?;
    let too_long = |bytes: u64| {
        let told = format!("{bytes} bytes, more than the {bytes_max} that are read");
        io::Error::new(io::ErrorKind::FileTooLarge, told)
    };
    if metadata.len() > bytes_max {
        return Err(too_long(metadata.len()).into());
    }
    let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    // It may grow while it is read.
    file.take(bytes_max + 1).read_to_end(&mut content)?;
    let bytes = content.len() as u64;
    if bytes > bytes_max { Err(too_long(bytes).into()) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "12345").expect("written");
        assert_eq!(read_text(&path, 5).expect("as long as it may be"), "12345");
        let error = read(&path, 4).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("5 bytes"), "{error}");
        fs::write(&path, b"\xff").expect("written");
        assert_eq!(read_text(&path, 5).expect_err("no text").kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_no_regular_file_holds_nobody_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .expect("made");
        for path in [&*fifo, directory.path(), Path::new("/dev/zero")] {
            let error = read(path, 100).expect_err("no file");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}: {error}", path.display());
        }
    }
}
