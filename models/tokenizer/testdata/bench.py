"""Times tokenizers 0.22.2, one thread, beside BenchmarkOfficial of bench_test.go. DIR gets the texts and the tokenizers that are not there yet:
english.txt (prose), mixed.txt (the golden corpus), wordpiece.json (any BERT), bpe.json (byte-level, 50k) and unigram.json (32k), trained on TRAIN.

    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python bench.py DIR [TRAIN_FILE]
"""
import os,sys,time
from tokenizers import Tokenizer,models,pre_tokenizers,trainers,normalizers,decoders
d=sys.argv[1]
p=lambda n: os.path.join(d,n)
if len(sys.argv)>2:
    lines=open(sys.argv[2],errors='ignore').read().split('\n')
    if not os.path.exists(p('bpe.json')):
        t=Tokenizer(models.BPE()); t.pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False); t.decoder=decoders.ByteLevel()
        t.train_from_iterator(lines,trainers.BpeTrainer(vocab_size=50000,initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),show_progress=False)); t.save(p('bpe.json'))
    if not os.path.exists(p('unigram.json')):
        t=Tokenizer(models.Unigram()); t.normalizer=normalizers.NFKC(); t.pre_tokenizer=pre_tokenizers.Metaspace()
        t.train_from_iterator(lines[:60000],trainers.UnigramTrainer(vocab_size=32000,special_tokens=['<unk>'],unk_token='<unk>',show_progress=False)); t.save(p('unigram.json'))
for n in ['wordpiece','bpe','unigram']:
    t=Tokenizer.from_file(p(n+'.json')); t.no_padding(); t.no_truncation()
    for f in ['english','mixed']:
        paragraphs=[x for x in open(p(f+'.txt')).read().split('\n\n') if x]
        size=sum(len(x.encode()) for x in paragraphs)
        row=[]
        for call in (t.encode_batch,t.encode_batch_fast):
            call(paragraphs); best=1e9
            for _ in range(5):
                a=time.perf_counter(); call(paragraphs); best=min(best,time.perf_counter()-a)
            row.append('%.1f MB/s'%(size/best/1e6))
        print(n,t.get_vocab_size(),f,size,'bytes, encode_batch',row[0],'encode_batch_fast',row[1])
