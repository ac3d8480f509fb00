"""A miniature of the release of HMDB-51: the official layout and every oddity, tiny clips.

The names are real ones of the release (H. Kuehne et al., CC BY 4.0), the videos are made here.
"""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import av

from tests.data.conftest import write_video

FPS, FRAMES = 30, 20
SHORT_FRAMES = 17  # of the shortest clip of the release

# Class -> (name, flags in the splits 1, 2 and 3).
CLIPS: dict[str, list[tuple[str, str]]] = {
    "brush_hair": [
        ("Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_fr_goo_0.avi", "112"),
        ("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "021"),
    ],
    "cartwheel": [
        ("(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0.avi", "121"),
        ("Geena_und_die_Radschl_ge___;-)_cartwheel_f_cm_np1_fr_med_2.avi", "211"),
    ],
    "clap": [
        ("#20_Rhythm_clap_u_nm_np1_fr_goo_2.avi", "120"),
        ("A_Round_of_Applause_clap_u_cm_np1_fr_med_0.avi", "212"),
    ],
    # classes whose name begins or ends another one's
    "climb": [
        ("Axel_beim_Klettern_an_der_Unisportwand_climb_f_cm_np1_ba_med_2.avi", "112"),
        ("Axel_beim_Klettern_an_der_Unisportwand_climb_f_cm_np1_ba_med_3.avi", "221"),
    ],
    "climb_stairs": [
        ("AgentCodyBanks_climb_stairs_f_cm_np1_fr_med_9.avi", "111"),
        ("BIG_FISH_climb_stairs_f_nm_np1_fr_med_1.avi", "202"),
    ],
    "draw_sword": [
        ("A_point_about_drawing_swords_draw_sword_u_nm_np1_fr_med_0.avi", "110"),
        ("19th_Century_Cavalry_Sabre_Draw_draw_sword_u_nm_np1_fr_bad_0.avi", "001"),
    ],
    "fencing": [
        (
            "Die_Another_Day_-_Fencing_Scene_Part_1_[HD]_avi_fencing_f_cm_np2_le_goo_0.avi",
            "211",
        ),
        ("1899_Hamlet__the_Fencing_Scene_with_Laertes_fencing_f_cm_np2_le_med_0.avi", "000"),
    ],
    "hug": [
        (
            "-_FREE_HUGS_-_Abrazos_Gratis_www_abrazosgratis_org_hug_u_cm_np2_ba_goo_10.avi",
            "121",
        ),
        ("A_Beautiful_Mind_3_hug_u_cm_np2_ba_med_2.avi", "102"),
    ],
    "kick": [
        ("FOOT_2009_(REMI_GAILLARD)_kick_f_cm_np1_ba_med_5.avi", "101"),
        ("50_FIRST_DATES_kick_f_cm_np1_ba_med_19.avi", "212"),
    ],
    "kick_ball": [
        ("Goal_1_&_2_kick_ball_f_cm_np1_fr_goo_2.avi", "112"),
        ("Amazing_Soccer_#2_kick_ball_f_cm_np1_ba_bad_5.avi", "120"),
    ],
    "pullup": [("Pull-ups_+_Push_ups-_a_time-saving_workout_pullup_u_cm_np1_ri_med_0.avi", "210")],
    "push": [("Alexander_pushing_the_table_push_f_cm_np1_ba_bad_1.avi", "121")],
    "pushup": [("100_push_ups_by_a_GIRL!!!_pushup_f_nm_np1_fr_goo_0.avi", "211")],
    "run": [("metacafe_coolsoccer_run_f_cm_np10_le_bad_2.avi", "112")],
    "shake_hands": [
        ("Jay_Leno_@_David_Letterman_shake_hands_f_cm_np2_le_med_0.avi", "111"),
        (
            "Anna_Paquin-The_Late_Show_with_David_Letterman~7_16_2009_shake_hands_"
            "f_cm_np2_le_med_0.avi",
            "022",
        ),
    ],
    "shoot_ball": [("WeTheKingsplaying_shoot_ball_f_cm_np1_ri_med_0.avi", "121")],
    "sit": [("50_FIRST_DATES_sit_f_cm_np1_fr_med_24.avi", "112")],
    "situp": [
        ("5_Min_Tone_Abs_Workout_2__Fitness_Training_w__Tammy_situp_f_nm_np1_fr_goo_2.avi", "111")
    ],
    "smile": [("Smile_-]_smile_h_nm_np1_fr_goo_0.avi", "211")],
    "somersault": [("LONGESTYARD_somersault_f_cm_np1_le_bad_27.avi", "122")],
    "sword": [
        ("2006_Full_Contact_Medieval_Sword_Tournament_Final_sword_f_cm_np2_le_bad_0.avi", "112")
    ],
    "sword_exercise": [("Fellowship_7_sword_exercise_u_nm_np1_fr_bad_11.avi", "121")],
}

# Number that the first frame of each clip shows; the others count on from it.
FIRST = {
    f"{name}/{clip}": 50 * number
    for number, (name, clip) in enumerate(
        (name, clip) for name, listed in CLIPS.items() for clip, _ in listed
    )
}
SHORT = "somersault/LONGESTYARD_somersault_f_cm_np1_le_bad_27.avi"
# Its title is not UTF-8, as that of the real one.
LATIN_1 = "shoot_ball/WeTheKingsplaying_shoot_ball_f_cm_np1_ri_med_0.avi"
# Listed, for training in one split and for testing in two, but not on the disk.
ABSENT = "clap/A_Round_of_Applause_clap_u_cm_np1_fr_med_0.avi"
# On the disk, but not listed; sorted.
UNLISTED = [
    ".DS_Store",
    "hug.rar",
    "notes",
    "run/.DS_Store",
    "run/second_take_run_f_cm_np1_le_bad_0.avi",
    "wave",
]


def write_release(folder: Path) -> tuple[Path, Path]:
    """Write the release as it is unpacked; return the folders of the videos and of the splits."""
    videos, splits = folder / "videos", folder / "testTrainMulti_7030_splits"
    for name in CLIPS:
        (videos / name).mkdir(parents=True)
    for clip, first in FIRST.items():
        if clip != ABSENT:
            num_frames = SHORT_FRAMES if clip == SHORT else FRAMES
            write_clip(videos / clip, num_frames, first)
    give_title(videos / LATIN_1, b"caf\x8c")
    for stray in UNLISTED:
        if stray in ("notes", "wave"):  # "wave" is a class, but of no clips here
            (videos / stray).mkdir()
        else:
            (videos / stray).write_bytes(b"stray")
    write_splits(splits)
    return videos, splits


def write_clip(path: Path, num_frames: int, first: int) -> None:
    """Write a clip as the release has them: MPEG-4 in AVI."""
    options = {"flags": "+qscale", "global_quality": "236"}
    write_video(path, num_frames, codec="mpeg4", rate=FPS, options=options, first=first)


def give_title(path: Path, title: bytes) -> None:
    """Put a title into an AVI, of bytes that need not be text."""
    stand_in = "x" * len(title)
    titled = path.with_name("titled.avi")
    with av.open(str(path)) as source, av.open(str(titled), "w") as target:
        target.metadata["title"] = stand_in
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:  # the last one only says that there are no more
                packet.stream = stream
                target.mux(packet)
    data = titled.read_bytes()
    assert data.count(stand_in.encode()) == 1
    titled.unlink()
    path.write_bytes(data.replace(stand_in.encode(), title))


def write_splits(folder: Path, line: str = "{name} {flag} \n") -> None:
    """Write the three split files of each class, by default with the blank that ends each line."""
    folder.mkdir()
    for name, listed in CLIPS.items():
        for place in range(3):
            text = "".join(line.format(name=clip, flag=flags[place]) for clip, flags in listed)
            path = folder / f"{name}_test_split{place + 1}.txt"
            path.write_text(text, encoding="ascii", newline="")


def records_of(variant: str, split: str) -> list[tuple[str, str]]:
    """Return (class, "class/name") of the clips of a split, in the official order."""
    flag = {"train": "1", "test": "2"}[split]
    return [
        (name, f"{name}/{clip}")
        for name, listed in CLIPS.items()
        for clip, flags in listed
        if flags[int(variant) - 1] == flag
    ]


def write_rar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a rar of version 2.9 whose members are stored as they are."""
    blocks = [b"Rar!\x1a\x07\x00", _rar_block(0x73, 0, bytes(6))]
    for name, data in members:
        raw = name.replace("/", "\\").encode("ascii")
        fields = (len(data), len(data), 3, zlib.crc32(data), 0x5A21_0000, 29, 0x30, len(raw))
        head = struct.pack("<IIBIIBBHI", *fields, 0o100644) + raw
        blocks += [_rar_block(0x74, 0x8000, head), data]
    path.write_bytes(b"".join([*blocks, _rar_block(0x7B, 0x4000, b"")]))
    return path


def _rar_block(kind: int, flags: int, fields: bytes) -> bytes:
    head = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
    return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head


def write_class_rars(videos: Path, folder: Path) -> dict[str, Path]:
    """Pack each class of an unpacked release into a rar, as the official archive holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    rars = {}
    for name in CLIPS:
        clips = sorted((videos / name).glob("*.avi"))
        members = [(f"{name}/{clip.name}", clip.read_bytes()) for clip in clips]
        rars[name] = write_rar(folder / f"{name}.rar", members)
    return rars
