//! Takes out what must not leave the machine: the set secret, hashes of passwords, private keys.

/// `text` without secrets. `secret` is the set's, which is looked for as it is.
pub fn scrub(text: &str, secret: Option<&Vec<u8>>) -> String {
    let mut lines = Vec::new();
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN ") && line.contains("PRIVATE KEY") {
            in_key = true;
            lines.push("(a private key was here)\n".to_owned());
        }
        if !in_key {
            lines.push(without_hashes(line));
        }
        if line.contains("-----END ") && line.contains("PRIVATE KEY") {
            in_key = false;
        }
    }
    let text = lines.concat();
    match secret.and_then(|secret| std::str::from_utf8(secret).ok()) {
        Some(secret) if !secret.is_empty() => text.replace(secret, "(the set secret was here)"),
        _ => text,
    }
}

/// The line with every crypt(5) hash, such as `$y$j9T$…`, replaced.
fn without_hashes(line: &str) -> String {
    let mut kept = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        let hash = &rest[at..];
        let end = hash.find(|c: char| !(c.is_ascii_alphanumeric() || "$./=,".contains(c))).unwrap_or(hash.len());
        let (hash, after) = hash.split_at(end);
        kept.push_str(&rest[..at]);
        let fields = hash.matches('$').count();
        kept.push_str(if fields >= 3 && hash.len() >= SHORTEST_HASH { "(a password hash was here)" } else { hash });
        rest = after;
    }
    kept + rest
}

/// Shorter ones are no hash but a shell's variables.
const SHORTEST_HASH: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_keys_and_the_set_secret_are_taken_out_and_the_rest_stays() {
        let text = "admin:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7:1::\n\
            cost $5 and $HOME\nkey:\n-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\nend correct-horse-battery\n";
        let secret = b"correct-horse-battery".to_vec();
        assert_eq!(
            scrub(text, Some(&secret)),
            "admin:(a password hash was here):1::\ncost $5 and $HOME\nkey:\n(a private key was here)\n\
             end (the set secret was here)\n"
        );
    }
}
