"""Wrong solutions of chapter 06 that people write, each with the hint it deserves."""

from __future__ import annotations

from minillm.grading import edited, mistake

# ---- bytes_moved

edited(
    "bytes_moved",
    "reads A once for each row of tiles, and B once for each column",
    replace={"m * k * tile_columns": "m * k * tile_rows", "k * n * tile_rows": "k * n * tile_columns"},
    hint="A row of A is needed by all tiles beside one another: A is read once for each column of tiles.",
)
edited(
    "bytes_moved",
    "leaves the tiles at the edge out",
    replace={"-(-m // block_m), -(-n // block_n)": "m // block_m, n // block_n"},
    hint="A tile at the edge is smaller, but it is a tile, and reads a whole strip of one of the matrices: round up.",
)
edited(
    "bytes_moved",
    "lets tiles at the edge read past the matrix",
    replace={
        "m * k * tile_columns": "tile_rows * block_m * k * tile_columns",
        "k * n * tile_rows": "k * tile_columns * block_n * tile_rows",
    },
    hint="A tile at the edge reads only rows and columns that exist: together m rows, not ceil(m / block_m) · block_m.",
)
edited(
    "bytes_moved",
    "forgets to write C",
    replace={"(read_a + read_b + m * n)": "(read_a + read_b)"},
    hint="The product has to get back to memory: m · n numbers more.",
)
edited(
    "bytes_moved",
    "counts numbers",
    replace={" * bytes_per_number": ""},
    hint="The sum so far counts numbers; each of them is bytes_per_number bytes.",
)
edited(
    "bytes_moved",
    "reads each matrix once",
    replace={"m * k * tile_columns": "m * k", "k * n * tile_rows": "k * n"},
    hint="That is the least that any order could move, and needs room for everything. Here nothing is kept between tiles.",
)
edited(
    "bytes_moved",
    "keeps B from one row of tiles to the next",
    replace={"k * n * tile_rows": "k * n"},
    hint="Nothing is kept from one tile to the next: B is read again for each row of tiles.",
)
edited(
    "bytes_moved",
    "keeps the rows of A from one tile to its neighbour",
    replace={"m * k * tile_columns": "m * k"},
    hint="Nothing is kept from one tile to the next: A is read again for each column of tiles.",
)
edited(
    "bytes_moved",
    "counts each tile at the edge as a full one",
    replace={
        "(read_a + read_b + m * n)": "tile_rows * tile_columns * (block_m * k + k * block_n + block_m * block_n)"
    },
    hint="A tile at the edge is smaller: it reads only rows and columns that exist, and writes only numbers that do.",
)


@mistake(
    "bytes_moved",
    "takes the napkin's formula, which knows no edges",
    hint="MNK (1/b_m + 1/b_n) + MN holds where the tiles divide M and N. At an edge the number of tiles is rounded up.",
)
def bytes_moved(m, n, k, *, block_m, block_n, bytes_per_number=4):
    return int((m * n * k * (1 / block_m + 1 / block_n) + m * n) * bytes_per_number)



# ---- count_sectors

edited(
    "count_sectors",
    "looks at the first byte only",
    replace={"address + itemsize - 1": "address"},
    hint="A number of itemsize bytes ends at address + itemsize - 1, which may lie in the next sector.",
)
edited(
    "count_sectors",
    "takes the byte behind the number for its last",
    replace={"address + itemsize - 1": "address + itemsize"},
    hint="A number at 28 with 4 bytes ends at byte 31: one sector. The last byte is address + itemsize - 1.",
)


@mistake(
    "count_sectors",
    "divides the bytes asked for by 32",
    hint="What counts is where the bytes lie. 32 lanes that want 4 bytes each may share 1 sector or need 32.",
)
def count_sectors(addresses, itemsize):
    wanted = itemsize * sum(address is not None for address in addresses)
    return -(-wanted // SECTOR_BYTES)  # noqa: F821 (a name of the solution)


@mistake(
    "count_sectors",
    "counts every sector between the lowest and the highest address",
    hint="Sectors between two lanes that nobody asks for are not delivered.",
)
def count_sectors(addresses, itemsize):  # noqa: F811
    active = [address for address in addresses if address is not None]
    if not active:
        return 0
    return (max(active) + itemsize - 1) // SECTOR_BYTES - min(active) // SECTOR_BYTES + 1  # noqa: F821


@mistake(
    "count_sectors",
    "counts a sector again for each lane that needs it",
    hint="A sector that several lanes need is delivered once: collect the sectors in a set.",
)
def count_sectors(addresses, itemsize):  # noqa: F811
    active = [address for address in addresses if address is not None]
    return sum((a + itemsize - 1) // SECTOR_BYTES - a // SECTOR_BYTES + 1 for a in active)  # noqa: F821


@mistake(
    "count_sectors",
    "shares a sector between neighbouring lanes only",
    hint="The order of the lanes doesn't matter: lanes 0 and 31 can share a sector as well.",
)
def count_sectors(addresses, itemsize):  # noqa: F811
    count, last = 0, None
    for address in addresses:
        if address is not None:
            for sector in range(address // SECTOR_BYTES, (address + itemsize - 1) // SECTOR_BYTES + 1):  # noqa: F821
                count += sector != last
                last = sector
    return count


edited(
    "count_sectors",
    "takes address 0 for a missing one",
    replace={"if address is not None:": "if address:"},
    hint="0 is an address; `if address:` takes it for none. Ask whether it `is not None`.",
)
edited(
    "count_sectors",
    "takes a missing address for address 0",
    replace={"        if address is not None:\n": "        address = address or 0\n        if True:\n"},
    hint="A lane with None takes no part: it needs no sector.",
)

# ---- choose_tile

edited(
    "choose_tile",
    "forgets that the tile of C takes room, too",
    replace={"block_m * block_n + num_stages * loaded": "num_stages * loaded"},
    hint="The sum is held while k runs: block_m · block_n numbers beside the tiles of A and B.",
)
edited(
    "choose_tile",
    "forgets the second buffer",
    replace={"num_stages * loaded": "loaded"},
    hint="num_stages pairs of tiles are there at the same time: one is computed with, the others are on their way.",
)
edited(
    "choose_tile",
    "buffers the tile of C as well",
    replace={"block_m * block_n + num_stages * loaded": "num_stages * (block_m * block_n + loaded)"},
    hint="Only what is loaded is buffered. There is one sum.",
)
edited(
    "choose_tile",
    "takes the largest tile",
    replace={"reuse = 2 * block_m * block_n * block_k / loaded": "reuse = block_m * block_n"},
    hint="Of two tiles with the same area the squarer one loads less: block_m · block_n / (block_m + block_n).",
)
edited(
    "choose_tile",
    "tries squares only",
    replace={"for block_n in sizes:": "for block_n in (block_m,):"},
    hint="A rectangle may fit where the next larger square doesn't, and beats the smaller square.",
)
edited(
    "choose_tile",
    "compares numbers with bytes",
    replace={"held * bytes_per_number": "held"},
    hint="sram_bytes are bytes; what is held was counted in numbers.",
)
edited(
    "choose_tile",
    "wants room to spare",
    replace={"<= sram_bytes": "< sram_bytes"},
    hint="A tile that fills the memory to the last byte fits.",
)
edited(
    "choose_tile",
    "of equally good tiles takes the taller",
    replace={"reuse > best_reuse": "reuse >= best_reuse"},
    hint="16 × 32 and 32 × 16 are equally good: the contract asks for the smaller block_m.",
)
edited(
    "choose_tile",
    "returns None where nothing fits",
    replace={
        '    if best is None:\n        raise ValueError(f"no tile of {tuple(sizes)} fits into {sram_bytes} bytes")\n': "",
    },
    hint="Say so with a ValueError: whoever asked would fail later, and further away.",
)

# ---- linear_on_meter


@mistake(
    "linear_on_meter",
    "loads x again for each tile of y",
    hint="The rows of x are the same for all columns of y: load them once, before the loop over j.",
)
def linear_on_meter(meter, x, weight, y, *, block_m, block_n, block_k):
    (m, k), n = x.shape, weight.shape[0]
    with meter.kernel("linear") as kernel:
        for i in range(0, m, block_m):
            with kernel.program(i) as sram:
                for j in range(0, n, block_n):
                    with sram.scope():
                        out = y[i : i + block_m, j : j + block_n]
                        acc = sram.zeros(out.shape)
                        for depth in range(0, k, block_k):
                            with sram.scope():
                                piece = sram.load(x[i : i + block_m, depth : depth + block_k])
                                tile = sram.load(weight[j : j + block_n, depth : depth + block_k])
                                sram.matmul(piece, tile.T, into=acc)
                        sram.store(acc, out)
    return meter.total


@mistake(
    "linear_on_meter",
    "one program for each tile of y",
    hint="A program can't see what another one loaded. To read x once, the program that has its rows makes all of y's.",
)
def linear_on_meter(meter, x, weight, y, *, block_m, block_n, block_k):  # noqa: F811
    (m, k), n = x.shape, weight.shape[0]
    with meter.kernel("linear") as kernel:
        for i in range(0, m, block_m):
            for j in range(0, n, block_n):
                with kernel.program(i, j) as sram:
                    rows = sram.load(x[i : i + block_m])
                    out = y[i : i + block_m, j : j + block_n]
                    acc = sram.zeros(out.shape)
                    for depth in range(0, k, block_k):
                        with sram.scope():
                            tile = sram.load(weight[j : j + block_n, depth : depth + block_k])
                            sram.matmul(rows[:, depth : depth + block_k], tile.T, into=acc)
                    sram.store(acc, out)
    return meter.total


edited(
    "linear_on_meter",
    "a launch for each block of rows",
    replace={
        '    with meter.kernel("linear") as kernel:\n        for i in range(0, m, block_m):\n': (
            '    for i in range(0, m, block_m):\n        with meter.kernel("linear") as kernel:\n'
        )
    },
    hint="One launch has a grid of programs: the loop over i stands inside `with meter.kernel(…)`.",
)
edited(
    "linear_on_meter",
    "loads all of weight's columns at once",
    replace={
        "for depth in range(0, k, block_k):": "for depth in (0,):",
        "weight[j : j + block_n, depth : depth + block_k]": "weight[j : j + block_n]",
        "rows[:, depth : depth + block_k]": "rows",
    },
    hint="More is held than fits: there is room for block_n · block_k numbers of weight, "
    "so the sum over k goes piece by piece.",
)
edited(
    "linear_on_meter",
    "frees nothing before the program ends",
    replace={
        "                            with sram.scope():\n                                tile": (
            "                            if True:\n                                tile"
        )
    },
    hint="More is held than fits. A tile of weight is needed for one product: "
    "load it in a `with sram.scope()`, or free it.",
)
edited(
    "linear_on_meter",
    "keeps each tile of y until the program ends",
    replace={
        "                    with sram.scope():\n                        out": (
            "                    if True:\n                        out"
        )
    },
    hint="There is room for one tile of y. Make its sum in a `with sram.scope()`: it is freed at the scope's end.",
)
edited(
    "linear_on_meter",
    "has no scopes at all",
    replace={
        "                    with sram.scope():\n                        out": (
            "                    if True:\n                        out"
        ),
        "                            with sram.scope():\n                                tile": (
            "                            if True:\n                                tile"
        ),
    },
    hint="What is loaded or made stays until the program ends, unless it is made in a `with sram.scope()`. "
    "The list after `held:` in the message shows what is there.",
)
edited(
    "linear_on_meter",
    "loads a piece of x beside the rows that it keeps",
    replace={
        "sram.matmul(rows[:, depth : depth + block_k], tile.T, into=acc)": (
            "piece = sram.load(x[i : i + block_m, depth : depth + block_k])\n"
            "                                sram.matmul(piece, tile.T, into=acc)"
        )
    },
    hint="The rows of x are on the chip already: rows[:, depth : depth + block_k] is a view of them and costs nothing.",
)
edited(
    "linear_on_meter",
    "stores the tile of y after each piece of k",
    replace={"                        sram.store(acc, out)": "                            sram.store(acc, out)"},
    hint="The sum is finished after the last piece of k. Store it then, once: after the loop, not in it.",
)
edited(
    "linear_on_meter",
    "starts the sum once for all tiles of y",
    replace={
        "                for j in range(0, n, block_n):\n                    with sram.scope():\n": (
            "                acc = sram.zeros(y[i : i + block_m, 0:block_n].shape)\n"
            "                for j in range(0, n, block_n):\n                    with sram.scope():\n"
        ),
        "                        acc = sram.zeros(out.shape)\n": "",
    },
    hint="Each tile of y is a sum of its own: it starts at zero, and at the edge it is narrower.",
)
edited(
    "linear_on_meter",
    "leaves the last, narrower tiles out",
    replace={"range(0, n, block_n)": "range(0, max(1, n - block_n + 1), block_n)"},
    hint="range(0, n, block_n) with slices that end at the edge makes the last tile as narrow as it has to be.",
)
edited(
    "linear_on_meter",
    "cuts the last piece of k off",
    replace={"range(0, k, block_k)": "range(0, max(1, k // block_k * block_k), block_k)"},
    hint="The last piece of k may be shorter than block_k; its products belong to the sum as well.",
)

# ---- tile_of_program

edited(
    "tile_of_program",
    "the draft as it was",
    replace={
        "    programs_in_group = group_m * tiles_n\n": "    return hasty_tile_of_program(program, tiles_m, tiles_n, group_m)\n"
        "    programs_in_group = group_m * tiles_n\n"
    },
    hint="Run the draft for 3 × 2 tiles in groups of 2 and compare with the example.",
)
edited(
    "tile_of_program",
    "counts the programs of a group by the height of C",
    replace={"group_m * tiles_n": "group_m * tiles_m"},
    hint="A group is group_m rows of tiles high and as wide as C: group_m · tiles_n programs.",
)
edited(
    "tile_of_program",
    "takes every group for a full one",
    replace={"min(group_m, tiles_m - first_m)": "group_m"},
    hint="The last group has tiles_m - first_m rows if that is less than group_m; both divisions go by the real number.",
)
edited(
    "tile_of_program",
    "shortens the last group for the row, and not for the column",
    replace={"place // rows": "place // group_m"},
    hint="A column of the last group ends after `rows` programs: the column is place // rows.",
)
edited(
    "tile_of_program",
    "shortens the last group for the column, and not for the row",
    replace={"place % rows": "place % group_m"},
    hint="In the last group the row starts again after `rows` programs: place % rows.",
)
edited(
    "tile_of_program",
    "takes the row from the program's number in the launch",
    replace={"first_m + place % rows": "first_m + program % rows"},
    hint="This works as long as the groups before are a multiple of `rows`. Count from the group's own first program.",
)
edited(
    "tile_of_program",
    "goes along the row",
    replace={"first_m + place % rows, place // rows": "first_m + place // tiles_n, place % tiles_n"},
    hint="Down the rows of the group first: neighbouring programs share a column of B.",
)

# ---- packed_matmul: pack_panels, micro_kernel, packed_matmul

edited(
    "pack_panels",
    "cuts off the columns that don't fill a panel",
    replace={"-(-columns // width)": "max(1, columns // width)", "filled_up[:, :columns] = matrix": (
        "filled_up[:, : min(columns, num_panels * width)] = matrix[:, : num_panels * width]"
    )},
    task="packed_matmul",
    hint="The last panel is filled up with zeros, not left out: round the number of panels up.",
)
edited(
    "pack_panels",
    "reshapes without a transpose",
    replace={"reshape(depth, num_panels, width).transpose(0, 1)": "reshape(num_panels, depth, width)"},
    task="packed_matmul",
    hint="A reshape keeps the order of the numbers; packing is there to change it. (depth, num_panels, width), then swap.",
)
edited(
    "pack_panels",
    "a view that says it is packed",
    replace={".contiguous()": ""},
    task="packed_matmul",
    hint="A transpose moves nothing. Packed means that the numbers lie in that order: .contiguous().",
)
edited(
    "pack_panels",
    "stores each panel by columns",
    replace={"transpose(0, 1).contiguous()": "permute(1, 2, 0).contiguous().reshape(num_panels, depth, width)"},
    task="packed_matmul",
    hint="In a panel k runs slowest: the `width` numbers of one k lie side by side.",
)
edited(
    "pack_panels",
    "always packs float32",
    replace={", dtype=matrix.dtype": ""},
    task="packed_matmul",
    hint="The dtype of the panels is the matrix's.",
)
edited(
    "micro_kernel",
    "adds into a new tile that nobody sees",
    replace={"tile += a_column[:, None] * b_row[None, :]": "tile = tile + a_column[:, None] * b_row[None, :]"},
    task="packed_matmul",
    hint="tile = tile + … makes another tensor; tile += … adds in place.",
)
edited(
    "micro_kernel",
    "overwrites the tile",
    replace={"tile += a_column": "tile[:] = a_column"},
    task="packed_matmul",
    hint="A tile is a sum over k, and over the pieces of k before: add.",
)
edited(
    "packed_matmul",
    "packs A's columns instead of its rows",
    replace={"a[:, depth : depth + block_k].T, tile_rows": "a[:, depth : depth + block_k], tile_rows"},
    hint="pack_panels puts columns side by side. A's rows are to lie side by side: pack a.T.",
)
edited(
    "packed_matmul",
    "each piece of k overwrites the sum",
    replace={"part += tile[": "part[:] = tile["},
    hint="C is a sum over all pieces of k: add the tile to what is there.",
)
edited(
    "packed_matmul",
    "overwrites the sum at the edge only",
    replace={
        "                part += tile[: part.shape[0], : part.shape[1]]": (
            "                if part.shape == tile.shape:\n                    part += tile\n"
            "                else:\n                    part[:] = tile[: part.shape[0], : part.shape[1]]"
        )
    },
    hint="At the edge C is a sum over the pieces of k as well: part += tile[: rows, : columns], not part[:] = ….",
)
edited(
    "packed_matmul",
    "forgets the last, shorter piece of k",
    replace={"range(0, k, block_k)": "range(0, max(1, k - block_k + 1), block_k)"},
    hint="range(0, k, block_k) reaches the last piece, and slices end at the edge.",
)
edited(
    "packed_matmul",
    "lets the micro-kernel write into C where no whole tile has room",
    replace={
        "                micro_kernel(a_panel, b_panel, tile)\n": "                micro_kernel(a_panel, b_panel, part)\n"
    },
    hint="At the edge the panels are wider than the part of C: sum a whole tile beside C, and add what exists of it.",
)
edited(
    "packed_matmul",
    "leaves the tiles at the edge out",
    replace={
        "                tile = c.new_zeros": "                if i + tile_rows > m or j + tile_columns > n:\n"
        "                    continue\n                tile = c.new_zeros"
    },
    hint="The tiles at the edge are part of the product: tile[: rows that exist, : columns that exist].",
)
