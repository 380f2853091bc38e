//! Which version this is: the system's, where the program runs from an image, else its own.

use std::fs;

/// Major, minor, patch.
pub fn running() -> [u16; 3] {
    let text = fs::read_to_string("/usr/lib/os-release").unwrap_or_default();
    image_version(&text).unwrap_or(trilith_core::VERSION)
}

/// As people write it.
pub fn words() -> String {
    running().map(|part| part.to_string()).join(".")
}

/// `IMAGE_VERSION` of os-release(5).
fn image_version(text: &str) -> Option<[u16; 3]> {
    let value = text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="))?.trim_matches('"');
    let parts = value.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u16>>>()?;
    parts.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_version_is_read_whole_or_not_at_all() {
        assert_eq!(image_version("ID=trilith\nIMAGE_VERSION=\"0.2.10\"\n"), Some([0, 2, 10]));
        assert_eq!(image_version("IMAGE_VERSION=1.2.3"), Some([1, 2, 3]));
        for text in ["", "IMAGE_VERSION=", "IMAGE_VERSION=1.2", "IMAGE_VERSION=1.2.3.4", "IMAGE_VERSION=1.2.99999"] {
            assert_eq!(image_version(text), None, "{text}");
        }
    }
}
