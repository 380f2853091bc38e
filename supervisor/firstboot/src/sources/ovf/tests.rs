use super::*;
use crate::take::take;

fn environment(properties: &[(&str, &str)]) -> String {
    let properties: String = properties
        .iter()
        .map(|(key, value)| format!("    <Property oe:key=\"{key}\" oe:value=\"{value}\"/>\n"))
        .collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"{NAMESPACE}\" xmlns:oe=\"{NAMESPACE}\">\n  \
         <PropertySection>\n{properties}  </PropertySection>\n</Environment>\n"
    )
}

fn from(properties: &[(&str, &str)]) -> Option<Documents> {
    documents(environment(properties).as_bytes(), "test").unwrap()
}

#[test]
fn properties_alone_make_a_node_of_a_set() {
    let documents = from(&[
        ("trilith.hostname", "a"),
        ("trilith.address", "10.0.0.11/24, fd00::11/64"),
        ("trilith.gateway", "10.0.0.1"),
        ("trilith.dns", "10.0.0.2,10.0.0.3"),
        ("trilith.ntp", "10.0.0.4"),
        ("trilith.set-name", "edge"),
        ("trilith.nodes", "a=10.0.0.11, b=10.0.0.12 c=10.0.0.13"),
        ("trilith.vips", "public=10.0.0.10/24"),
        ("trilith.secret", "quite &amp; long &lt;enough&gt; &#34;"),
    ]);
    let taken = take(&documents.unwrap());
    assert_eq!(taken.findings.faults, []);
    let set = taken.answers.set.unwrap();
    assert_eq!(set.secret.unwrap().0, "quite & long <enough> \"");
    assert_eq!(set.node, "a");
    assert!(set.document.contains("interface = \"eth0\""), "{}", set.document);
    let network = taken.answers.network.unwrap();
    assert_eq!(network.links[0].addresses.len(), 2);
    assert_eq!(network.links[0].dns.len(), 2);
    assert_eq!(taken.answers.ntp.unwrap().servers, ["10.0.0.4"]);
}

#[test]
fn a_wrong_property_is_named_with_its_line_and_unknown_ones_are_told() {
    let documents = from(&[("hostname", "a"), ("address", "10.0.0.300/24"), ("colour", "blue")]).unwrap();
    let taken = take(&documents);
    assert_eq!(taken.findings.faults[0].line, 5);
    assert!(taken.findings.faults[0].wrong.contains("10.0.0.300"), "{:?}", taken.findings);
    assert!(taken.findings.warnings.iter().any(|warning| warning.key == "colour" && warning.line == 6));
    assert!(taken.network_is_wrong);
}

#[test]
fn user_data_goes_before_properties_plain_or_encoded() {
    for text in ["#cloud-config&#10;timezone: UTC&#10;", &encoding::to_base64(b"#cloud-config\ntimezone: UTC\n")] {
        let taken = take(&from(&[("timezone", "Europe/Vienna"), ("user-data", text)]).unwrap());
        assert_eq!(taken.answers.timezone.as_deref(), Some("UTC"), "{:?}", taken.findings);
    }
}

#[test]
fn nothing_filled_in_is_no_answer_and_damage_is_told() {
    assert_eq!(from(&[("hostname", ""), ("address", " ")]), None);
    assert!(documents(b"<Environment", "test").unwrap_err().starts_with("test is no OVF environment"));
    let bomb = "<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>";
    assert!(documents(bomb.as_bytes(), "test").is_err());
}

/// What a person fills in, and nothing else.
const FILLED_IN: &[(&str, &str)] = &[
    ("trilith.node", "b"),
    ("trilith.address", "10.77.0.12/24"),
    ("trilith.gateway", "10.77.0.1"),
    ("trilith.dns", "10.77.0.1"),
    ("trilith.ntp", "10.77.0.1"),
    ("trilith.set-name", "edge-1"),
    ("trilith.nodes", "a=10.77.0.11, b=10.77.0.12, c=10.77.0.13"),
    ("trilith.vips", "public=10.77.0.10/24"),
    ("trilith.services", "portal=80:8080, mail=25:2525/tcp"),
    ("trilith.secret", "0123456789abcdef"),
    (
        "trilith.password-hash",
        "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS130MTSuDDl3aCI6WouIL9AjRbLCelDCy.g.",
    ),
    ("trilith.interface", "eth0"),
    ("trilith.mtu", "1500"),
];

/// What comes of it when one property is another, as its XML is written.
fn with(key: &str, value: &str) -> crate::take::Taken {
    let full = format!("trilith.{key}");
    let mut properties = FILLED_IN.to_vec();
    properties.retain(|(held, _)| *held != full);
    properties.push((&full, value));
    take(&from(&properties).unwrap())
}

/// What is told of it, without the words that all lines begin with; then no set is joined.
fn faults(key: &str, value: &str) -> String {
    let taken = with(key, value);
    assert!(!taken.findings.faults.is_empty(), "{key} = {value:.80} was taken");
    assert_eq!((taken.answers.set, taken.answers.files.len()), (None, 0));
    let faults = taken.findings.faults.iter().map(ToString::to_string);
    let faults = faults.map(|fault| fault.strip_prefix("OVF environment").unwrap().to_owned()).collect::<Vec<_>>();
    let faults = faults.join("\n");
    assert!(faults.len() < 1_000, "too long for a console: {} bytes", faults.len());
    faults
}

/// Each of these is refused in exactly these words.
fn refused(cases: &[(&str, &str, &str)]) {
    for (key, value, told) in cases {
        assert_eq!(faults(key, value), *told, "{key} = {value:.80}");
    }
}

#[test]
fn a_form_filled_in_by_hand_makes_a_node_with_services() {
    let taken = take(&from(FILLED_IN).unwrap());
    assert_eq!((&taken.findings.faults[..], &taken.findings.warnings[..]), (&[][..], &[][..]));
    assert_eq!(taken.answers.hostname.as_deref(), Some("b"));
    let set = taken.answers.set.unwrap();
    assert_eq!(set.node, "b");
    let settings = trilith_core::config::parse(&set.document, "set.toml").unwrap();
    assert_eq!(settings.nodes.len(), 3);
    assert_eq!((settings.vips[0].prefix, settings.vips[0].interface.as_str()), (24, "eth0"));
    let [portal, mail] = &settings.services[..] else { panic!("{settings:?}") };
    assert_eq!((portal.port, portal.backend_port, portal.vips.len()), (80, 8080, 1));
    assert_eq!((mail.port, mail.backend_port, mail.mode), (25, 2525, trilith_core::config::Mode::Tcp));
}

#[test]
fn blanks_and_line_ends_where_people_put_them_change_nothing() {
    let usual = take(&from(FILLED_IN).unwrap()).answers.set.unwrap().document;
    for nodes in ["a = 10.77.0.11, b = 10.77.0.12,c=10.77.0.13", "a=10.77.0.11&#10;b=10.77.0.12&#10;c=10.77.0.13&#10;"]
    {
        assert_eq!(with("nodes", nodes).answers.set.unwrap().document, usual, "{nodes}");
    }
    assert_eq!(with("node", "  b ").answers.hostname.as_deref(), Some("b"));
}

#[test]
fn another_interface_is_that_of_the_address_and_of_the_vips() {
    let taken = with("interface", "eth1");
    assert_eq!(taken.answers.network.unwrap().links[0].id, "eth1");
    assert!(taken.answers.set.unwrap().document.contains("interface = \"eth1\""));
}

#[test]
fn an_empty_or_short_secret_is_refused() {
    let missing = ":9: trilith: the secret is missing; add below trilith: the same secret on all nodes, such as the output of: \
                   openssl rand -base64 32";
    refused(&[
        ("secret", "", missing),
        ("secret", "   ", missing),
        (
            "secret",
            "tooshort",
            ":16: trilith.secret: has 8 bytes; give 16 to 4096 bytes, such as the output of: openssl rand -base64 32",
        ),
        (
            "secret",
            "kurz &amp; süß",
            ":16: trilith.secret: has 12 bytes; give 16 to 4096 bytes, such as the output of: openssl rand -base64 32",
        ),
    ]);
}

#[test]
fn an_address_without_prefix_and_one_that_is_none_are_refused() {
    for value in ["10.77.0.12", "10.77.0.12/", "10.77.0.12/33", "10.77.0.12/24/24", "10.77.0.300/24", "here/24", "/24"]
    {
        assert!(with("address", value).network_is_wrong, "{value}");
        let told = format!(
            ":16: ethernets.eth0.addresses: \"{value}\" is no address with a prefix length; write one such as \
             10.0.0.2/24 or fd00::2/64"
        );
        refused(&[("address", value, &told)]);
    }
    refused(&[
        (
            "vips",
            "public=10.77.0.10",
            ":16: trilith.vip.address: \"10.77.0.10\" lacks the prefix length of its subnet; write the address and the prefix \
             length of its subnet, such as \"10.77.0.10/24\" or \"fd77::10/64\"",
        ),
        (
            "nodes",
            "a=10.77.0.11/24, b=10.77.0.12, c=10.77.0.13",
            ":16: trilith.node.address: \"10.77.0.11/24\" has a prefix length, which only a VIP has; write one such as \
             \"10.77.0.11\" or \"fd77::11\"",
        ),
    ]);
}

#[test]
fn one_address_in_two_places_is_refused() {
    refused(&[
        (
            "nodes",
            "a=10.77.0.12, b=10.77.0.12, c=10.77.0.13",
            ":16: trilith.node.address: 10.77.0.12 is the address of node a already; give each its own address",
        ),
        (
            "vips",
            "public=10.77.0.11/24",
            ":16: trilith.vip.address: 10.77.0.11 is the address of node a already; give each its own address",
        ),
        (
            "vips",
            "public=10.77.0.10/24, other=10.77.0.10/24",
            ":16: trilith.vip.address: 10.77.0.10 is the address of VIP public already; give each its own address",
        ),
        (
            "nodes",
            "a=10.77.0.11, a=10.77.0.12, c=10.77.0.13",
            ":16: trilith.node.name: \"a\" is the name of another node already; give each node a name of its own",
        ),
        ("address", "10.77.0.12/24, 10.77.0.12/24", ":16: 10.77.0.12 is given to two links; leave one of the two out"),
        (
            "address",
            "10.77.0.11/24",
            ":8: trilith: this machine is node b, and its network has 10.77.0.11, which is node a's; give it 10.77.0.12, or \
             the other name",
        ),
        (
            "address",
            "10.77.0.10/24",
            ":8: trilith: this machine's network has 10.77.0.10, which is VIP public; give it the node's own address: the set \
             places VIPs by itself",
        ),
        (
            "address",
            "10.77.0.99/24",
            ":8: trilith: node b has 10.77.0.12, but this machine's network does not; give the same address in both places",
        ),
        (
            "gateway",
            "10.77.0.12",
            ":8: trilith: the gateway 10.77.0.12 is node b's address; give the address of a router",
        ),
        ("gateway", "10.77.0.10", ":8: trilith: the gateway 10.77.0.10 is VIP public; give the address of a router"),
    ]);
}

#[test]
fn a_vip_outside_the_nodes_subnet_is_refused() {
    refused(&[
        (
            "vips",
            "public=10.78.0.10/24",
            ":16: trilith.vip.address: the subnet of 10.78.0.10/24 does not hold node a's address 10.77.0.11; a VIP and all \
             nodes share one subnet: mend the VIP, its prefix length or the node's address",
        ),
        (
            "vips",
            "public=fd77::10/64",
            ":10: trilith.node.address6: is missing, but VIP public is IPv6 (fd77::10); give node a an address6 in fd77::10/64",
        ),
    ]);
}

#[test]
fn a_form_that_is_half_empty_is_refused_and_not_taken_for_a_node_without_a_set() {
    refused(&[
        ("nodes", "", ":9: trilith.node: is missing; add node: with a list below it, each beginning with \"- \""),
        ("set-name", "", ":12: trilith.set: is missing; add set: with name: below it"),
        (
            "services",
            "portal=80",
            ":16: trilith.service.backend_port: is missing; add a line such as backend_port: 8080",
        ),
        ("services", "portal", ":16: trilith.service.port: is missing; add a line such as port: 443"),
    ]);
    faults("vips", "");
    let alone = take(&from(&[("node", "a")]).unwrap());
    assert!(!alone.findings.faults.is_empty());
}

#[test]
fn a_node_that_is_not_in_the_list_is_refused() {
    refused(&[("node", "d", ":16: trilith.name: \"d\" is no node of the set; write one of a, b, c")]);
}

#[test]
fn quotes_ampersands_newlines_and_other_languages_are_the_secret_that_was_meant() {
    for (written, meant) in [
        ("&quot;in quotes&quot; &apos;of both sorts&apos;", "\"in quotes\" 'of both sorts'"),
        ("salt &amp; pepper &amp;amp; more", "salt & pepper &amp; more"),
        ("C:\\path\\n is no newline $HOME `id`", "C:\\path\\n is no newline $HOME `id`"),
        ("first line&#10;second line", "first line\nsecond line"),
        ("Zürich, 東京, Київ, القاهرة 🪨", "Zürich, 東京, Київ, القاهرة 🪨"),
        ("{{ braces }}: [lists], # and : yaml", "{{ braces }}: [lists], # and : yaml"),
    ] {
        let taken = with("secret", written);
        assert_eq!(taken.findings.faults, [], "{written}");
        assert_eq!(taken.answers.set.unwrap().secret.unwrap().0, meant);
    }
}

#[test]
fn quotes_ampersands_and_newlines_are_refused_where_they_can_mean_nothing() {
    let label = |value: &str| {
        format!("{value} is no DNS label; use 1 to 63 lower-case letters, digits and inner hyphens, such as \"edge-1\"")
    };
    for (written, shown) in
        [("edge&quot;1", "\"edge\\\"1\""), ("edge&amp;1", "\"edge&1\""), ("edge&#10;1", "\"edge\\n1\"")]
    {
        refused(&[("set-name", written, &format!(":16: trilith.set.name: {}", label(shown)))]);
    }
    refused(&[
        (
            "vips",
            "&quot;public&quot;=10.77.0.10/24",
            &format!(":16: trilith.vip.name: {}", label("\"\\\"public\\\"\"")),
        ),
        (
            "node",
            "b&#10;a",
            ":16: local-hostname: \"b\\na\" is no name of a host; write letters, digits and hyphens, such as node-a or \
             node-a.example.org\n:16: trilith.name: \"b\\na\" is no node of the set; write one of a, b, c",
        ),
        (
            "ntp",
            "&quot;ntp&amp;1&quot;",
            ":16: ntp.servers: \"\\\"ntp&1\\\"\" is no name of a server; write one such as ntp.example.org or 10.0.0.1",
        ),
        (
            "timezone",
            "Europe&#10;Vienna",
            ":17: timezone: \"Europe\\nVienna\" is no time zone; write one such as Europe/Vienna or UTC",
        ),
        (
            "password-hash",
            "secret &amp; plain",
            ":16: users.hashed_passwd: is no hash: a password in plain text is not taken; give its hash, from: openssl passwd -6 \
             (or mkpasswd), in quotes",
        ),
    ]);
    assert_eq!(with("instance-id", "&quot;a&quot; &amp; b&#10;c").answers.instance_id, "\"a\" & b\nc");
}

#[test]
fn names_of_other_languages_are_refused_where_only_dns_names_can_be() {
    let label = "is no DNS label; use 1 to 63 lower-case letters, digits and inner hyphens, such as \"edge-1\"";
    refused(&[
        (
            "node",
            "Büro",
            ":16: local-hostname: \"Büro\" is no name of a host; write letters, digits and hyphens, such as node-a or \
             node-a.example.org\n:16: trilith.name: \"Büro\" is no node of the set; write one of a, b, c",
        ),
        ("set-name", "東京", &format!(":16: trilith.set.name: \"東京\" {label}")),
        ("vips", "öffentlich=10.77.0.10/24", &format!(":16: trilith.vip.name: \"öffentlich\" {label}")),
        ("services", "портал=80:8080", &format!(":16: trilith.service.name: \"портал\" {label}")),
    ]);
    // And they are taken where anything can be.
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGv8Zx2n6mWjPsWm3pmV0V0Zc2s1m8lQ0H3b0Wn2u0cK Jürgen &amp; 小林";
    let taken = with("public-keys", key);
    assert_eq!(taken.findings.faults, []);
    let admin = taken.answers.users.iter().find(|user| user.name == "admin").unwrap();
    assert_eq!(admin.ssh_authorized_keys, [key.replace("&amp;", "&")]);
}

#[test]
fn documents_that_are_not_encoded_as_they_should_be_are_refused() {
    let damaged = encoding::to_base64(&[0x1f, 0x8b, 8, 0]);
    for value in ["dGltZXpvbmU6IFVUQwo", "I2Nsb3VkLWNvbmZpZwo!", &damaged] {
        assert!(with("network-config", value).network_is_wrong, "{value}");
        faults("network-config", value);
        faults("user-data", value);
    }
}

#[test]
fn sixty_four_kib_of_text_are_refused_in_a_few_words_or_taken_whole() {
    let long = "x".repeat(64 * 1024);
    let shown = format!("\"{}…\"", "x".repeat(60));
    let label = "is no DNS label; use 1 to 63 lower-case letters, digits and inner hyphens, such as \"edge-1\"";
    refused(&[
        (
            "secret",
            &long,
            ":16: trilith.secret: has 65536 bytes; give 16 to 4096 bytes, such as the output of: openssl rand -base64 32",
        ),
        (
            "address",
            &long,
            &format!(
                ":16: ethernets.eth0.addresses: {shown} is no address with a prefix length; write one such as 10.0.0.2/24 or \
                 fd00::2/64"
            ),
        ),
        ("set-name", &long, &format!(":16: trilith.set.name: {shown} {label}")),
        ("nodes", &long, &format!(":16: trilith.node.name: {shown} {label}")),
        ("vips", &long, &format!(":16: trilith.vip.name: {shown} {label}")),
        ("services", &long, &format!(":16: trilith.service.name: {shown} {label}")),
    ]);
    for key in KNOWN.iter().filter(|key| **key != "instance-id") {
        let told = faults(key, &long);
        assert!(told.len() < 500, "too long for a console: {told:.500}");
    }
    assert_eq!(with("instance-id", &long).answers.instance_id, long);
    let content = format!("#cloud-config&#10;timezone: UTC&#10;# {long}&#10;");
    let taken = with("user-data", &content);
    assert_eq!((&taken.findings.faults[..], taken.answers.timezone.as_deref()), (&[][..], Some("UTC")));
    assert!(taken.answers.set.is_some());
}

#[test]
fn what_user_data_says_of_the_set_stands_in_for_all_that_the_form_says_of_it() {
    let document = "#cloud-config\ntrilith:\n  secret: another secret, of the document\n  set: {name: other}\n  \
        node: [{name: b, address: 10.77.0.12}]\n  vip: [{name: v, address: 10.77.0.20/24, interface: eth0}]\n";
    let taken = with("user-data", &encoding::to_base64(document.as_bytes()));
    assert_eq!(taken.findings.faults, []);
    let set = taken.answers.set.unwrap();
    assert_eq!(set.secret.unwrap().0, "another secret, of the document");
    assert!(set.document.contains("name = \"other\"") && !set.document.contains("edge-1"));
}
