"""One model on several machines of one owner: llama.cpp's RPC, carried by streams of ours."""
