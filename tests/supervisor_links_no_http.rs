//! The privileged binary contains no symbol of what parses HTTP, SQL or JSON.
#![expect(clippy::indexing_slicing, reason = "helpers of tests fail the test")]

/// The names in the symbol tables of a little-endian 64-bit ELF file (elf(5)).
fn symbol_names(elf: &[u8]) -> String {
    let number =
        |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0_usize, |n, &b| (n << 8) | usize::from(b));
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01");
    let (sections, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let mut names = String::new();
    for section in (0..count).map(|n| sections + n * size) {
        // SHT_SYMTAB is 2; its sh_link is the number of its string table.
        if number(section + 4, 4) == 2 {
            let strings = sections + number(section + 0x28, 4) * size;
            let (offset, length) = (number(strings + 0x18, 8), number(strings + 0x20, 8));
            names.push_str(&String::from_utf8_lossy(&elf[offset..offset + length]).replace('\0', "\n"));
        }
    }
    names
}

/// Whether a mangled name, legacy or v0, has this crate in its path: both write the length before the name.
fn mentions(name: &str, krate: &str) -> bool {
    let part = format!("{}{krate}", krate.len());
    name.match_indices(&part).any(|(at, _)| {
        let digit_before = name[..at].ends_with(|c: char| c.is_ascii_digit());
        let end = &name[at + part.len()..];
        !digit_before && !end.starts_with('_')
    })
}

#[test]
fn the_supervisor_links_no_http_no_sql_and_no_json() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_forgejo-mcp-supervisor")).expect("the binary");
    let names = symbol_names(&elf);
    assert!(names.lines().any(|name| mentions(name, "tokio")), "the symbols cannot be read, so nothing is proven");
    for krate in ["axum", "hyper", "hyper_util", "sqlx", "sqlx_core", "sqlx_sqlite", "serde_json", "reqwest", "rustls"]
    {
        let found: Vec<_> = names.lines().filter(|name| mentions(name, krate)).take(3).collect();
        assert!(found.is_empty(), "{krate}: {found:?}");
    }
    assert!(!names.lines().any(|name| name.starts_with("sqlite3_")), "sqlite");
}
