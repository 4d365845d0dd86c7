"""Every attack that was thought of: what defends against it and which tests try it, or why it is not tried.

``test_catalogue.py`` sees that nothing here is a name of something that is not there, and tells the rows of those
attacks that other suites try; the attacks of this folder tell their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_ATTACKS = "tests/integration/attacks/"
_EXCHANGE = "tests/integration/exchange/"
_NATS = "tests/integration/nats/"
_WEB = "tests/integration/web/"
_S3 = "tests/integration/s3/"
_PROMISES = "tests/contract/buckets/test_promises.py::"


@dataclass(frozen=True)
class Attack:
    """``defended_by``: what holds it off, in words. ``tests``: those that try it, as ``path::name``. ``open``: what of
    it is not tried or not held off, ``not built yet: …`` or ``not defended: …``."""

    defended_by: str
    tests: tuple[str, ...] = ()
    open: str = ""


#: What issue 4 lists, in its order.
ISSUE: Final = (
    "publish or subscribe on another channel or inbox",
    "wildcards",
    "reply-subject injection",
    "replay and relay of signatures",
    "forged done",
    "false bad reports",
    "a grant used for another key",
    "a grant used for another length",
    "a grant used for another content",
    "a grant used twice or late",
    "a poisoned object, then recovery from an honest holder",
    "lying offers",
    "fake progress",
    "an invite reused",
    "an invite guessed",
    "traversal in names",
    "traversal in trees",
    "traversal in folder URLs",
    "zip-bomb miniblocks",
    "headers and messages at their limits",
    "unsigned, stale and replayed HTTP",
    "SSRF through a bucket endpoint",
    "DNS rebinding on the local face",
    "secrets in errors and logs",
    "a revoked node's live connection",
)

ATTACKS: Final[Mapping[str, Attack]] = {
    "publish or subscribe on another channel or inbox": Attack(
        "the NATS server's permissions, filled in from the node's login",
        (
            _EXCHANGE + "test_walls.py::test_another_channel_cannot_be_spoken_to",
            _EXCHANGE + "test_walls.py::test_no_node_can_speak_for_another",
            _EXCHANGE + "test_walls.py::test_one_channels_offer_serves_no_other",
            _NATS + "test_permissions.py::test_other_channels_are_walled_off",
            _NATS + "test_permissions.py::test_others_inboxes_and_sessions_are_closed",
            _NATS + "test_permissions.py::test_a_sender_cannot_be_forged",
            _NATS + "test_permissions.py::test_servers_apis_are_closed",
            _ATTACKS + "test_relays.py::test_who_has_no_rights_is_heard_nowhere",
        ),
    ),
    "wildcards": Attack(
        "the NATS server's permissions; channel names that cannot hold one",
        (
            _EXCHANGE + "test_walls.py::test_nothing_can_be_overheard",
            _NATS + "test_permissions.py::test_wildcards_do_not_widen_rights",
            "tests/unit/nats/test_jwt.py::test_a_channel_name_never_becomes_a_wildcard",
            "tests/unit/nats/test_subjects.py::test_no_wildcard_gets_into_a_subject",
        ),
    ),
    "reply-subject injection": Attack(
        "the hub answers into the sender's own inbox only; nodes may not respond",
        (
            _EXCHANGE + "test_walls.py::test_the_hub_is_nobodys_deputy",
            _NATS + "test_permissions.py::test_a_reply_subject_is_the_hubs_to_check",
            _NATS + "test_permissions.py::test_a_node_cannot_answer_what_it_was_sent",
            "tests/unit/nats/test_subjects.py::test_answers_go_to_the_senders_inbox_only",
        ),
    ),
    "replay and relay of signatures": Attack(
        "a key of its own for every hub, signed target and nonce, nonces of one form",
        (
            _ATTACKS + "test_relays.py::test_a_nonce_passed_on_by_another_hub_logs_nobody_in",
            _WEB + "test_signatures.py::test_a_request_to_one_hub_cannot_be_relayed_to_another",
            _WEB + "test_signatures.py::test_a_request_that_was_changed_is_refused",
            "tests/contract/test_bus.py::test_a_server_that_asks_for_another_signature_gets_none",
            "tests/unit/core/test_signing.py::test_no_nonce_of_a_bus_is_ever_a_request",
            "tests/unit/nats/test_nkeys.py::test_what_is_no_nonce_is_not_signed",
            _NATS + "test_permissions.py::test_a_stolen_jwt_is_worth_nothing_without_the_key",
            _NATS + "test_permissions.py::test_a_jwt_of_another_hub_is_refused",
        ),
    ),
    "forged done": Attack(
        "a done is a hint: the hub looks into the bucket; the grant is checked against its node",
        (
            _EXCHANGE + "test_arbitration.py::test_a_stale_done_changes_nothing",
            _EXCHANGE + "test_arbitration.py::test_done_without_an_upload_fails_the_grant_over",
            _EXCHANGE + "test_replays.py::test_an_old_upload_forgives_no_new_failure",
            _EXCHANGE + "test_replays.py::test_repeated_reports_are_looked_into_once_a_second",
        ),
    ),
    "false bad reports": Attack(
        "the hub reads the object itself; a false report is a strike, three mute the reporter",
        (
            _EXCHANGE + "test_arbitration.py::test_a_false_report_removes_nothing",
            _ATTACKS + "test_members.py::test_false_reports_are_soon_looked_into_no_more",
            _S3 + "test_tampering.py::test_a_report_is_judged_by_what_lies_there",
        ),
    ),
    "a grant used for another key": Attack(
        "the URL's signature; a grant is one session's of one node",
        (
            _PROMISES + "test_a_changed_url_opens_nothing",
            "tests/unit/buckets/test_folder_urls.py::test_no_part_fits_another_url",
            _EXCHANGE + "test_arbitration.py::test_a_session_cannot_use_the_grant_of_another_node",
            _EXCHANGE + "test_arbitration.py::test_a_header_that_does_not_prove_the_object_is_refused",
            _ATTACKS + "test_members.py::test_another_session_of_the_same_node_cannot_accept",
            _ATTACKS + "test_members.py::test_an_accept_needs_the_header",
        ),
    ),
    "a grant used for another length": Attack(
        "the length is signed, or found at the hub's look",
        (
            _PROMISES + "test_another_length_is_refused",
            _PROMISES + "test_a_put_without_a_length_is_refused",
            _PROMISES + "test_a_truncated_put_leaves_nothing",
            _S3 + "test_tampering.py::test_bad_uploads_reach_no_reader",
            "tests/integration/buckets/test_misuse.py::test_bad_uploads_reach_no_reader",
        ),
    ),
    "a grant used for another content": Attack(
        "the digest is signed, or found at the hub's look; every reader verifies",
        (
            _PROMISES + "test_other_bytes_are_refused_or_told",
            _EXCHANGE + "test_arbitration.py::test_other_bytes_than_granted_are_refused_by_the_bucket",
            _S3 + "test_tampering.py::test_bad_uploads_reach_no_reader",
            "tests/integration/buckets/test_misuse.py::test_bad_uploads_reach_no_reader",
        ),
    ),
    "a grant used twice or late": Attack(
        "create-only, the URL's end, tombstones, the grant's random id",
        (
            _PROMISES + "test_a_taken_key_is_kept",
            _PROMISES + "test_an_expired_url_opens_nothing",
            _PROMISES + "test_a_tombstone_stops_a_late_put",
            _EXCHANGE + "test_arbitration.py::test_a_lease_without_progress_passes_to_the_next_holder",
            _EXCHANGE + "test_arbitration.py::test_the_quota_is_never_exceeded_and_a_late_put_meets_a_tombstone",
            _S3 + "test_tampering.py::test_a_late_put_after_eviction",
            _S3 + "test_tampering.py::test_what_a_late_put_left_is_swept_when_no_url_works_any_more",
            "tests/integration/buckets/test_misuse.py::test_a_late_put_after_eviction",
        ),
    ),
    "a poisoned object, then recovery from an honest holder": Attack(
        "readers verify each miniblock; the hub judges, takes it out, strikes its uploader, asks another holder",
        (
            _ATTACKS + "test_poison.py::test_a_poisoned_object_is_replaced_by_an_honest_holder",
            _ATTACKS + "test_poison.py::test_who_brings_bad_objects_again_and_again_comes_last",
            _EXCHANGE + "test_arbitration.py::test_a_bad_object_is_judged_quarantined_and_replaced",
            "tests/faults/test_objects.py::test_a_damaged_object_is_quarantined_and_replaced",
        ),
    ),
    "lying offers": Attack(
        "an opening has to prove the id; an offer that comes to nothing fails over",
        (
            _EXCHANGE + "test_arbitration.py::test_an_opening_that_does_not_prove_the_stream_is_not_believed",
            _ATTACKS + "test_members.py::test_a_stream_of_impossible_length_stops_nothing",
            _ATTACKS + "test_members.py::test_offers_of_made_up_sessions_do_not_pile_up",
            _ATTACKS + "test_members.py::test_repeated_accepts_hold_no_object",
            _ATTACKS + "test_members.py::test_a_holders_words_are_no_word_of_the_hub",
            _EXCHANGE + "test_arbitration.py::test_a_lease_without_progress_passes_to_the_next_holder",
        ),
    ),
    "fake progress": Attack(
        "only growing bytes up to the object's length renew a lease, and never past the URL's end",
        (
            _EXCHANGE + "test_arbitration.py::test_progress_keeps_a_lease_and_fake_progress_does_not",
            _ATTACKS + "test_grants.py::test_fake_progress_ends_with_the_object",
        ),
        "not defended: progress at the floor rate holds an object for its length over 16 KiB/s, 256 s for 4 MiB",
    ),
    "an invite reused": Attack(
        "uses are counted in one transaction; a revoked member needs a newer invite",
        (
            _WEB + "test_join.py::test_another_key_cannot_use_it_again",
            _WEB + "test_join.py::test_an_expired_invite_lets_nobody_in",
            _WEB + "test_join.py::test_a_revoked_member_cannot_come_back_by_its_old_invite",
            "tests/contract/registry/test_invites.py::test_an_invite_for_three_lets_three_in",
        ),
    ),
    "an invite guessed": Attack(
        "128 bits behind an id of 128 bits; ten failures, then one every 10 s; every failure looks the same",
        (
            _WEB + "test_shedding.py::test_invites_are_not_guessed",
            _WEB + "test_join.py::test_who_guesses_stays_outside",
            "tests/contract/registry/test_invites.py::test_every_failure_looks_the_same",
        ),
    ),
    "traversal in names": Attack(
        "a URI's name is one safe segment; without -o no hidden file or option is made",
        (
            _ATTACKS + "test_names.py::test_a_uri_names_no_file_that_harms",
            _ATTACKS + "test_names.py::test_an_output_that_is_a_link_is_replaced_and_not_followed",
            "tests/unit/core/test_uri.py::test_unsafe_names_are_refused",
            _WEB + "test_session.py::test_names_with_odd_characters_reach_the_hub",
        ),
    ),
    "traversal in trees": Attack("–", open="not built yet: trees"),
    "traversal in folder URLs": Attack(
        "the key is signed; keys have one form; files are opened below the folder only",
        (
            _ATTACKS + "test_faces.py::test_no_path_leads_out_of_a_folder_bucket",
            _PROMISES + "test_what_is_no_key_is_refused",
            "tests/unit/buckets/test_folder_files.py::test_only_plain_files_are_objects",
            _WEB + "test_folder_places.py::test_the_hubs_own_folder_is_no_bucket",
        ),
    ),
    "zip-bomb miniblocks": Attack(
        "exact lengths and geometry before a byte is read; frames are unpacked into the plain length and not a byte "
        "more; encoded answers are refused",
        (
            _ATTACKS + "test_buckets.py::test_a_header_that_claims_more_costs_nothing",
            _ATTACKS + "test_buckets.py::test_no_wrong_byte_is_kept",
            _ATTACKS + "test_buckets.py::test_an_error_without_end_is_not_read",
            "tests/unit/core/test_format.py::test_miniblocks_of_another_length_are_refused",
            _WEB + "test_faults.py::test_a_compressed_bomb_is_not_unpacked",
            "tests/unit/core/test_codec.py::test_a_bomb_takes_no_memory",
            "tests/unit/transfer/test_packed.py::test_a_hostile_miniblock_is_refused_alone",
            "tests/unit/transfer/test_packed.py::test_an_object_of_another_length_than_its_header_says_is_refused",
            _EXCHANGE + "test_packed.py::test_a_poisoned_packed_object_is_replaced_by_an_honest_holder",
        ),
    ),
    "headers and messages at their limits": Attack(
        "a bound on every field, message, header and body",
        (
            _ATTACKS + "test_faces.py::test_messages_at_their_limits",
            _ATTACKS + "test_faces.py::test_requests_at_their_limits",
            _ATTACKS + "test_faces.py::test_a_strangers_body_is_never_unpacked",
            _EXCHANGE + "test_walls.py::test_rubbish_is_answered_not_obeyed",
            "tests/unit/exchange/test_messages.py::test_values_out_of_bounds_are_refused",
            "tests/unit/exchange/test_messages.py::test_a_message_has_a_largest_size",
            "tests/contract/test_bus.py::test_a_servers_own_payload_limit_is_told",
        ),
    ),
    "unsigned, stale and replayed HTTP": Attack(
        "signatures over method, address, body, time and nonce; a mutation's nonce is a unique row",
        (
            _WEB + "test_signatures.py::test_an_unsigned_request_is_refused",
            _WEB + "test_signatures.py::test_an_unknown_key_is_refused",
            _WEB + "test_signatures.py::test_a_clock_that_is_off_is_named",
            _WEB + "test_signatures.py::test_a_repeated_request_is_refused",
            _WEB + "test_signatures.py::test_a_replay_is_refused_for_as_long_as_its_age_would_let_it_in",
            _WEB + "test_signatures.py::test_a_body_that_the_signature_leaves_out_is_refused",
            _WEB + "test_signatures.py::test_two_signatures_are_one_too_many",
            "tests/contract/registry/test_registry.py::test_a_nonce_sent_many_times_at_once_counts_once",
        ),
    ),
    "SSRF through a bucket endpoint": Attack(
        "only the admin names endpoints; no redirect is followed, only error codes are repeated; "
        "nodes ask no metadata service",
        (
            _ATTACKS + "test_endpoints.py::test_an_endpoint_that_is_a_metadata_service_tells_nobody_anything",
            _ATTACKS + "test_endpoints.py::test_an_endpoint_sends_the_hub_nowhere",
            _ATTACKS + "test_endpoints.py::test_nobody_but_the_admin_names_an_endpoint",
            _ATTACKS + "test_buckets.py::test_no_metadata_service_is_asked",
            _ATTACKS + "test_buckets.py::test_no_redirect_is_followed",
            _ATTACKS + "test_buckets.py::test_only_http_is_spoken",
            _ATTACKS + "test_buckets.py::test_a_url_cannot_bring_a_second_request",
        ),
        "not defended: the admin may name any address as an endpoint, and a hub any but a metadata service as a URL",
    ),
    "DNS rebinding on the local face": Attack(
        "the daemon has a file and no port; the hub's API goes by signatures over its own address",
        (
            _ATTACKS + "test_faces.py::test_a_daemon_is_reached_by_its_file_alone",
            _ATTACKS + "test_faces.py::test_a_page_under_another_name_learns_nothing",
            "tests/integration/node/test_daemon.py::test_the_socket_is_its_owners_only",
            _WEB + "test_signatures.py::test_every_public_address_counts_and_host_does_not",
            _WEB + "test_admin_socket.py::test_the_admins_paths_are_not_served_to_nodes",
            _WEB + "test_admin_socket.py::test_it_is_never_open_to_others_whatever_the_umask",
        ),
        "not built yet: the local page over HTTP",
    ),
    "secrets in errors and logs": Attack(
        "secrets are masked types; libraries' errors are translated; only codes of a fixed form are quoted",
        (
            "tests/integration/test_secrets.py::test_a_secret_is_found_nowhere",
            "tests/integration/test_secrets.py::test_a_refusal_is_passed_on_without_what_it_repeats",
            "tests/integration/test_secrets.py::test_no_setting_shows_a_secret",
            _S3 + "test_channel.py::test_the_keys_are_seen_nowhere",
            "tests/contract/buckets/test_s3_errors.py::test_no_secret_shows",
            _WEB + "test_join.py::test_no_secret_is_in_what_a_client_raises",
            "tests/unit/core/test_invite.py::test_no_secret_shows",
        ),
    ),
    "a revoked node's live connection": Attack(
        "the NATS server drops it when the account's list of revocations is pushed; its login opens no other",
        (
            _EXCHANGE + "test_walls.py::test_a_revoked_node_is_gone_and_stays_gone",
            _EXCHANGE + "test_walls.py::test_an_old_login_dies_with_the_revocation",
            _EXCHANGE + "test_walls.py::test_rights_taken_away_count_for_what_is_said_next",
            _NATS + "test_accounts.py::test_a_revoked_node_is_gone_and_stays_out",
            _NATS + "test_server.py::test_a_revocation_outlives_the_server",
            "tests/faults/test_membership.py::test_a_revoked_reader_is_gone_while_it_reads",
            "tests/faults/test_membership.py::test_a_revoked_provider_is_gone_while_it_uploads",
        ),
    ),
    # Beyond the issue's list.
    "an invite that passes off a stranger's address as a hub's": Attack(
        "the hub signs the node's challenge and the address that the node dialled",
        (
            _ATTACKS + "test_relays.py::test_no_stranger_takes_a_hubs_place",
            _ATTACKS + "test_relays.py::test_a_hub_signs_for_its_own_addresses_alone",
        ),
    ),
    "URLs that a revoked node still holds": Attack(
        "they end in minutes; what it uploads by one has to prove itself as any object has",
        (_ATTACKS + "test_grants.py::test_the_urls_of_a_revoked_node_end_soon",),
        "not defended: until then, at most 10 minutes to read and some to upload",
    ),
    "a condemned object put there again by its old URL": Attack(
        "it answers to no grant any more and is deleted; the honest upload is asked for again",
        (_ATTACKS + "test_poison.py::test_a_poison_put_again_delays_and_no_more",),
        "not defended: while that URL lives (5 minutes for 4 MiB) each replay that lands first costs an upload",
    ),
    "floods by a member": Attack(
        "nodes take turns, bounded queues, so many wants and sessions of one node; many messages in one count as many",
        (
            _ATTACKS + "test_members.py::test_one_member_cannot_silence_the_others",
            _ATTACKS + "test_members.py::test_many_messages_in_one_earn_a_member_nothing",
            "tests/unit/hub/test_dispatcher.py::test_a_flood_of_several_at_once_is_hardly_read",
            "tests/contract/test_bus.py::test_a_handler_that_never_waits_leaves_others_their_turn",
            _ATTACKS + "test_members.py::test_a_member_wants_so_many_streams_and_no_more",
            "tests/unit/hub/test_dispatcher.py::test_a_node_has_its_share_over_all_its_channels",
            "tests/unit/hub/test_dispatcher.py::test_a_flood_is_shed_and_others_are_heard_in_their_turn",
            "tests/unit/hub/test_rounds_load.py::test_invented_sessions_gain_a_node_nothing",
            _NATS + "test_limits.py::test_a_node_has_so_many_subscriptions",
            _WEB + "test_shedding.py::test_a_node_is_refused_and_others_are_not",
        ),
    ),
    "floods by strangers": Attack(
        "rates for each address, a bound on connections and on requests at once: 429 or 503 with Retry-After",
        (
            _WEB + "test_shedding.py::test_a_stranger_is_refused_and_nodes_at_its_address_are_not",
            _WEB + "test_shedding.py::test_made_up_keys_count_for_their_address",
            _WEB + "test_shedding.py::test_idle_connections_are_bounded",
            _WEB + "test_shedding.py::test_who_claims_to_sign_is_counted_like_everybody",
            _WEB + "test_shedding.py::test_connections_of_one_address_are_bounded",
            _WEB + "test_shedding.py::test_bulk_of_one_address_leaves_room_for_others",
            _WEB + "test_shedding.py::test_bodies_that_never_come_hold_no_place",
            _WEB + "test_shedding.py::test_everybody_together_is_bounded",
        ),
        "not defended: a flood from very many addresses",
    ),
    "a bucket that answers whatever harms": Attack(
        "bounded answers, exact lengths, verification before anything is stored",
        (
            _ATTACKS + "test_buckets.py::test_an_error_without_end_is_not_read",
            _ATTACKS + "test_buckets.py::test_a_senseless_pause_is_no_pause",
            _ATTACKS + "test_buckets.py::test_no_wrong_byte_is_kept",
            _EXCHANGE + "test_bad_buckets.py::test_a_bad_bucket_keeps_no_other_channel_from_failing_over",
            "tests/unit/buckets/test_s3_transport.py",
        ),
    ),
    "a file changed under the store, or an output edited": Attack(
        "size, times and inode are compared; what differs is hashed again and never served as what it was",
        (
            _ATTACKS + "test_names.py::test_an_edited_output_is_never_served_as_the_original",
            "tests/integration/node/test_providing.py::test_a_file_that_changed_is_not_served_as_what_it_was",
        ),
    ),
    "a stream taken out of its channel": Attack(
        "a node offers a stream only where it was added, and what it fetched where it fetched it",
        (
            "tests/integration/node/test_providing.py::test_nothing_is_offered_where_it_was_not_added",
            "tests/integration/node/test_providing.py::test_what_was_fetched_stays_in_its_channel",
            "tests/integration/node/test_providing.py::test_a_grant_out_of_scope_is_refused",
            "tests/faults/test_membership.py::test_what_is_added_to_one_channel_is_never_offered_in_another",
        ),
    ),
    "a member that makes itself an owner": Attack(
        "owners' requests are checked against the database, for their own channel alone",
        (
            _WEB + "test_session.py::test_who_is_no_owner_changes_nothing",
            _WEB + "test_session.py::test_an_owner_learns_of_no_nodes_outside_its_channel",
            _WEB + "test_session.py::test_the_login_carries_the_rights_and_no_more",
            _EXCHANGE + "test_walls.py::test_a_reader_cannot_provide_and_a_provider_cannot_request",
            _EXCHANGE + "test_walls.py::test_who_may_only_read_gets_the_bucket_and_nothing_more",
        ),
    ),
    "an overheard URL used by a node over its limit": Attack(
        "–", open="not defended: the signed GET of an object is one for all readers of the channel"
    ),
}
